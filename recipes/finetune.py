"""Fine-tuning: train a whole encoder on labels or transcripts, beside the same architecture from scratch.

    accelerate launch recipes/finetune.py outputs/mae
    accelerate launch recipes/finetune.py outputs/mae --dataset my_images/ --epochs 50 --flip
    accelerate launch recipes/finetune.py facebook/dinov2-small --dataset uoft-cs/cifar10 --seeds 1
    accelerate launch recipes/finetune.py outputs/mlm --dataset reviews.csv --label_column stars
    accelerate launch recipes/finetune.py outputs/hubert --dataset my_sounds/
    accelerate launch recipes/finetune.py outputs/hubert --task ctc --dataset speech.parquet

Whether the data are images, recordings or texts, the encoder says. Without --dataset: the labelled data of the
encoder's run, as its folder remembers them, else what comes with hfssl. Ends with a table, results.json, report.html,
and in model/ the classifier of seed 0, which any pipeline of transformers loads; with --task ctc a recogniser that
writes down speech. The score is that of the last step on the test split: nothing is chosen by looking at it. The same
command goes on where an interrupted run stopped. The protocols stand in hfssl/evaluation/finetune.py and
hfssl/evaluation/audio/ctc.py.
"""

from hfssl.cli.command import command
from hfssl.commands import first_named


@command
def main():
    from hfssl import RecipeParser
    from hfssl.cli.labelled import LabelledDataArguments
    from hfssl.cli.measuring import Finetune
    from hfssl.evaluation.finetune_settings import FinetuneSettings
    from hfssl.evaluation.modality import modality_of_encoder
    from hfssl.evaluation.probes import parse_task, probe_table
    from hfssl.machine import process_state, use_all_cores

    parser = RecipeParser(Finetune, LabelledDataArguments, FinetuneSettings, description=__doc__)
    recipe, data, settings = parser.parse(first_named("encoder"))
    use_all_cores()
    encoder = recipe.open()
    modality = modality_of_encoder(encoder).name
    protocol = parse_task(recipe.task, modality)
    train, test = data.of_run(encoder, modality).load(modality, transcripts=protocol == "ctc")
    probe_table(
        encoder, None, train, test, protocol, output_dir=recipe.folder, precision=recipe.precision,
        settings=settings, name=recipe.encoder, command=parser.command_line(),
    )  # fmt: skip
    recipe.tell()
    if settings.save_model:
        process_state().print(f"\nThe trained model (seed 0): {recipe.folder}/model, with a card")


if __name__ == "__main__":
    main()
