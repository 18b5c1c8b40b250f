"""Features of your own data: every text, image or recording as the vector that an encoder makes of it.

    accelerate launch recipes/embed.py outputs/simclr --dataset my_images/
    accelerate launch recipes/embed.py outputs/mlm --dataset my_texts/ --format npy
    accelerate launch recipes/embed.py outputs/simclr --dataset my_images/ --report duplicates,clusters
    torchrun --nproc_per_node 2 recipes/embed.py facebook/dinov2-small --dataset org/name --split test

Whether the data are texts, images or recordings, the encoder says. Pooling is the one that it was trained with, where
its folder says so. Several processes share the work; after a kill the same command goes on. Features are in the order
of the data, beside the file and row of each. What goes over the data is hfssl/data/corpus/, what makes features is
hfssl/evaluation/embed.py.
"""

from hfssl.cli.command import command
from hfssl.commands import first_named


@command
def main():
    from hfssl import RecipeParser
    from hfssl.cli.embed import Embed, WholeDataArguments
    from hfssl.evaluation.embed import embed, load_embedder
    from hfssl.evaluation.embed_report import draw_report, parse_report, report, write_report
    from hfssl.evaluation.sample_features import EmbedSettings
    from hfssl.machine import use_all_cores

    parser = RecipeParser(Embed, EmbedSettings, WholeDataArguments, description=__doc__)
    recipe, settings, data = parser.parse(first_named("encoder"))
    use_all_cores()
    kinds = parse_report(recipe.report)
    embedder = load_embedder(recipe.open(), settings)
    source = data.open(embedder.modality)
    made = embed(embedder, source, recipe.folder, recipe.format, data.max_bad_fraction)
    if made is not None:
        print(made.summary())
        if kinds:
            features, samples = made.load()
            found = report(features, kinds=kinds)
            said = write_report(found, kinds, samples, recipe.folder)
            said += draw_report(found, kinds, embedder, source, made.places(), recipe.folder)
            print("\n" + "\n".join(said))


if __name__ == "__main__":
    main()
