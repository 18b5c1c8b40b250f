"""Fine-tuning: train a whole encoder on labels or transcripts, beside the same architecture from scratch.

    accelerate launch recipes/finetune.py --encoder outputs/mae
    accelerate launch recipes/finetune.py --encoder outputs/mae --dataset my_images/ --epochs 50 --flip
    accelerate launch recipes/finetune.py --encoder facebook/dinov2-small --dataset uoft-cs/cifar10 --seeds 1
    accelerate launch recipes/finetune.py --encoder outputs/mlm --dataset reviews.csv --label_column stars
    accelerate launch recipes/finetune.py --encoder outputs/hubert --dataset my_sounds/
    accelerate launch recipes/finetune.py --encoder outputs/hubert --task ctc --dataset speech.parquet

Whether the data are images, recordings or texts, the encoder says. Without --dataset: the labelled data of the
encoder's run, as its folder remembers them, else what comes with hfssl. Ends with a table, results.json, report.html,
and in model/ the classifier of seed 0, which any pipeline of transformers loads; with --task ctc a recogniser that
writes down speech. The score is that of the last step on the test split: nothing is chosen by looking at it. The same
command goes on where an interrupted run stopped. The protocols stand in hfssl/evaluation/finetune.py and
hfssl/evaluation/audio/ctc.py.
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
            Folder or Hub id of the encoder, with its image processor, feature extractor or tokenizer; or a checkpoint
            of a run.
        task (`str`, *optional*, defaults to `"classification"`):
            classification, or ctc: write down what is said in recordings, of which there are transcripts.
        precision (`str`, *optional*, defaults to `"auto"`):
            Autocast to bf16 or not; auto takes bf16 where the hardware computes in it.
        output_dir (`str`, *optional*):
            Where results go; outputs/finetune-<name of the encoder> when left out.
    """

    encoder: str
    task: Literal["classification", "ctc"] = "classification"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    output_dir: str | None = None


@command
def main():
    from hfssl import RecipeParser
    from hfssl.cli.labelled import LabelledDataArguments
    from hfssl.evaluation.encoder_folder import stock_folder
    from hfssl.evaluation.finetune_settings import FinetuneSettings
    from hfssl.evaluation.modality import modality_of_encoder
    from hfssl.evaluation.probes import parse_task, probe_table
    from hfssl.machine import process_state, use_all_cores
    from hfssl.report.page import report_safely

    parser = RecipeParser(Finetune, LabelledDataArguments, FinetuneSettings, description=__doc__)
    recipe, data, settings = parser.parse()
    use_all_cores()
    output_dir = recipe.output_dir or f"outputs/finetune-{Path(recipe.encoder).resolve().name}"
    encoder = stock_folder(recipe.encoder)
    modality = modality_of_encoder(encoder).name
    protocol = parse_task(recipe.task, modality)
    train, test = data.of_run(encoder, modality).load(modality, transcripts=protocol == "ctc")
    probe_table(
        encoder, None, train, test, protocol, output_dir=output_dir, precision=recipe.precision,
        settings=settings, name=recipe.encoder, command=parser.command_line(),
    )  # fmt: skip
    if (page := report_safely(output_dir)) is not None:
        print(f"\nReport: {page}")
    if settings.save_model:
        process_state().print(f"\nThe trained model (seed 0): {output_dir}/model, with a card")


if __name__ == "__main__":
    main()
