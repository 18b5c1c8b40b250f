"""Features of your own data: every text, image or recording as the vector that an encoder makes of it.

    accelerate launch recipes/embed.py --encoder outputs/simclr --dataset my_images/
    accelerate launch recipes/embed.py --encoder outputs/mlm --dataset my_texts/ --format npy
    accelerate launch recipes/embed.py --encoder outputs/simclr --dataset my_images/ --report duplicates,clusters
    torchrun --nproc_per_node 2 recipes/embed.py --encoder facebook/dinov2-small --dataset org/name --split test

Whether the data are texts, images or recordings, the encoder says. Pooling is the one that it was trained with, where
its folder says so. Several processes share the work; after a kill the same command goes on. Features are in the order
of the data, beside the file and row of each. What goes over the data is hfssl/data/corpus/, what makes features is
hfssl/evaluation/embed.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hfssl.cli.command import command


@dataclass
class Embed:
    r"""
    > Features

    Args:
        encoder (`str`):
            Folder or Hub id of the encoder, with its tokenizer, image processor or feature extractor; or a
            checkpoint of a run.
        format (`str`, *optional*, defaults to `"parquet"`):
            parquet (features.parquet), npy (features.npy, and places.parquet beside it) or dataset (a folder that
            `datasets.load_from_disk` reads).
        report (`str`, *optional*):
            Of duplicates, outliers and clusters, separated by commas: what is nearly the same to the encoder, like
            nothing else, or a group of its own, as csv files beside the features, and pictures of images.
        output_dir (`str`, *optional*):
            Where features go; outputs/embed-<name of the encoder> when left out.
    """

    encoder: str
    format: Literal["parquet", "npy", "dataset"] = "parquet"
    report: str | None = None
    output_dir: str | None = None


@command
def main():
    from hfssl import RecipeParser
    from hfssl.cli.embed import WholeDataArguments
    from hfssl.evaluation.embed import embed, load_embedder
    from hfssl.evaluation.embed_report import draw_report, parse_report, report, write_report
    from hfssl.evaluation.encoder_folder import stock_folder
    from hfssl.evaluation.sample_features import EmbedSettings
    from hfssl.machine import use_all_cores

    parser = RecipeParser(Embed, EmbedSettings, WholeDataArguments, description=__doc__)
    recipe, settings, data = parser.parse()
    use_all_cores()
    kinds = parse_report(recipe.report)
    embedder = load_embedder(stock_folder(recipe.encoder), settings)
    source = data.open(embedder.modality)
    output_dir = recipe.output_dir or f"outputs/embed-{Path(recipe.encoder).resolve().name}"
    made = embed(embedder, source, output_dir, recipe.format, data.max_bad_fraction)
    if made is not None:
        print(made.summary())
        if kinds:
            features, samples = made.load()
            found, folder = report(features, kinds=kinds), Path(output_dir)
            said = write_report(found, kinds, samples, folder)
            said += draw_report(found, kinds, embedder, source, made.places(), folder)
            print("\n" + "\n".join(said))


if __name__ == "__main__":
    main()
