"""Fine-tuning: train a whole encoder on labels, beside the same architecture from scratch.

    accelerate launch recipes/finetune.py --encoder outputs/mae
    accelerate launch recipes/finetune.py --encoder outputs/mae --dataset my_images/ --epochs 50 --flip
    accelerate launch recipes/finetune.py --encoder facebook/dinov2-small --dataset uoft-cs/cifar10 --seeds 1
    accelerate launch recipes/finetune.py --encoder outputs/mlm --dataset reviews.csv --label_column stars

Whether the data are images or texts, the encoder says. Without --dataset: the labelled data of the encoder's run, as
its folder remembers them, else the embedded letters. Ends with a table, results.json, and in model/ the classifier of
seed 0, which any pipeline of transformers loads. The score is that of the last step on the test split: nothing is
chosen by looking at it. The same command goes on where an interrupted run stopped. The protocol stands in
hfssl/evaluation/finetune.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hfssl.cli.command import command


@dataclass
class Finetune:
    r"""
    > Encoder

    Args:
        encoder (`str`):
            Folder or Hub id of the encoder, with its image processor or tokenizer; or a checkpoint of a run.
        precision (`str`, *optional*, defaults to `"auto"`):
            Autocast to bf16 or not; auto takes bf16 where the hardware computes in it.
        output_dir (`str`, *optional*):
            Where results go; outputs/finetune-<name of the encoder> when left out.
    """

    encoder: str
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    output_dir: str | None = None


@command
def main():
    from hfssl import RecipeParser
    from hfssl.cli.labelled import LabelledDataArguments
    from hfssl.evaluation.encoder_folder import stock_folder
    from hfssl.evaluation.finetune_settings import FinetuneSettings
    from hfssl.evaluation.modality import modality_of_encoder
    from hfssl.evaluation.probes import probe_table
    from hfssl.machine import process_state, use_all_cores

    parser = RecipeParser(Finetune, LabelledDataArguments, FinetuneSettings, description=__doc__)
    recipe, data, settings = parser.parse()
    use_all_cores()
    output_dir = recipe.output_dir or f"outputs/finetune-{Path(recipe.encoder).resolve().name}"
    encoder = stock_folder(recipe.encoder)
    modality = modality_of_encoder(encoder).name
    train, test = data.of_run(encoder, modality).load(modality)
    probe_table(
        encoder, None, train, test, "finetune", output_dir=output_dir, precision=recipe.precision,
        settings=settings, name=recipe.encoder, command=parser.command_line(),
    )  # fmt: skip
    if settings.save_model:
        process_state().print(f"\nThe classifier (seed 0): {output_dir}/model, with a card")


if __name__ == "__main__":
    main()
