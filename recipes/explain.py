"""What is inside an encoder: where it looks, what its dimensions stand for, how alike layers are, what decides.

    python recipes/explain.py outputs/simclr
    python recipes/explain.py outputs/mlm --dataset reviews.csv --label_column stars
    python recipes/explain.py outputs/hubert --dataset my_sounds/ --beside outputs/wav2vec2
    python recipes/explain.py outputs/dinov2 --dataset my_images/ --dimensions 3 17 --max_samples 200

Of an encoder of images, texts or recordings: attention roll-out, or Grad-CAM of a convolutional one; the samples that
activate dimensions of its feature most; the similarity of its layers (CKA) to those of its random initialisation and
of other encoders; and, where the data have labels, what decisions of a linear probe rest on, by gradient × input and
by hiding parts. Each is told with where it comes from and what it does not show. Without --dataset: the data of the
encoder's run, as its folder remembers them, else what comes with hfssl. Ends with report.html, explain.json,
results.json and pictures in assets/. The methods stand in hfssl/evaluation/explain.py.
"""

from dataclasses import dataclass
from pathlib import Path

from hfssl.cli.command import command
from hfssl.commands import first_named


@dataclass
class Explain:
    r"""
    > Explain

    Args:
        encoder (`str`):
            Folder or Hub id of the encoder, with its image processor, feature extractor or tokenizer; or a checkpoint
            of a run. It may stand first, without the name of the flag.
        beside (`list[str]`, *optional*):
            Other encoders of such samples, whose layers are compared with its own.
        dimensions (`list[int]`, *optional*):
            Of the feature, those whose samples are shown. Left out: the 8 that differ most between samples.
        pooling (`str`, *optional*):
            As in recipes/probe.py. Left out: the one that the encoder was trained with, else what fits it.
        max_samples (`int`, *optional*, defaults to `500`):
            So many samples of each split at most.
        batch_size (`int`, *optional*, defaults to `64`):
            Samples a forward pass.
        update_report (`bool`, *optional*, defaults to `False`):
            Tell it in the report of the encoder's own folder as well.
        output_dir (`str`, *optional*):
            Where report and pictures go; outputs/explain-<name of the encoder> when left out.
    """

    encoder: str
    beside: list[str] | None = None
    dimensions: list[int] | None = None
    pooling: str | None = None
    max_samples: int = 500
    batch_size: int = 64
    update_report: bool = False
    output_dir: str | None = None


@command
def main():
    from hfssl import RecipeParser
    from hfssl.cli.labelled import LabelledDataArguments, load_with_or_without_labels
    from hfssl.evaluation.encoder_folder import stock_folder, trained_pooling, weights_digest
    from hfssl.evaluation.explain import explain
    from hfssl.evaluation.inside import keep_findings
    from hfssl.evaluation.modality import modality_of_encoder
    from hfssl.evaluation.probes import columns_of
    from hfssl.machine import use_all_cores
    from hfssl.report.page import report_safely
    from hfssl.report.record import read_record

    parser = RecipeParser(Explain, LabelledDataArguments, description=__doc__)
    recipe, data = parser.parse(first_named("encoder"))
    use_all_cores()
    if recipe.update_report:
        read_record(recipe.encoder)  # there is one to tell it in, before minutes of work
    weights = weights_digest(recipe.encoder)  # of a method without a stock class what is opened lies elsewhere
    encoder = stock_folder(recipe.encoder)
    train, test = load_with_or_without_labels(data, encoder, modality_of_encoder(encoder).name)
    output_dir = recipe.output_dir or f"outputs/explain-{Path(recipe.encoder).resolve().name}"
    findings = explain(
        encoder, train, test, output_dir=output_dir, pooling=recipe.pooling or trained_pooling(encoder),
        beside={column: stock_folder(other) for column, other in columns_of(recipe.beside or ()).items()},
        dimensions=recipe.dimensions, max_samples=recipe.max_samples, batch_size=recipe.batch_size,
        name=recipe.encoder, command=parser.command_line(), weights=weights,
    )  # fmt: skip
    for finding in findings:
        print("\n".join([f"\n{finding.title}", *finding.said, f"What it does not show: {finding.limits}"]))
    if (page := report_safely(output_dir)) is not None:
        print(f"\nReport: {page}")
    if recipe.update_report:
        keep_findings(output_dir, recipe.encoder)
        if (page := report_safely(recipe.encoder)) is not None:
            print(f"It is told in {page} as well")


if __name__ == "__main__":
    main()
