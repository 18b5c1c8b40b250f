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

from hfssl.cli.command import command
from hfssl.commands import first_named


@command
def main():
    from hfssl import RecipeParser
    from hfssl.cli.labelled import LabelledDataArguments, load_with_or_without_labels
    from hfssl.cli.measuring import Explain
    from hfssl.evaluation.encoder_folder import trained_pooling, weights_digest
    from hfssl.evaluation.explain import explain
    from hfssl.evaluation.modality import modality_of_encoder
    from hfssl.machine import use_all_cores

    parser = RecipeParser(Explain, LabelledDataArguments, description=__doc__)
    recipe, data = parser.parse(first_named("encoder"))
    use_all_cores()
    weights = weights_digest(recipe.encoder)  # of a method without a stock class what is opened lies elsewhere
    encoder = recipe.open()
    train, test = load_with_or_without_labels(data, encoder, modality_of_encoder(encoder).name)
    findings = explain(
        encoder, train, test, output_dir=recipe.folder, pooling=recipe.pooling or trained_pooling(encoder),
        beside=recipe.open_beside(), dimensions=recipe.dimensions, max_samples=recipe.max_samples,
        batch_size=recipe.batch_size, name=recipe.encoder, command=parser.command_line(), weights=weights,
    )  # fmt: skip
    for finding in findings:
        print("\n".join([f"\n{finding.title}", *finding.said, f"What it does not show: {finding.limits}"]))
    recipe.finish()


if __name__ == "__main__":
    main()
