"""Is an encoder any good? Probes of its frozen features, beside those of what needs no training.

    accelerate launch recipes/probe.py --encoder outputs/simclr
    accelerate launch recipes/probe.py --encoder outputs/simclr --dataset my_images/ --protocol knn,linear,few_shot
    accelerate launch recipes/probe.py --encoder facebook/dinov2-small --dataset uoft-cs/cifar10 --pooling cls+mean
    accelerate launch recipes/probe.py --encoder outputs/simclr --protocol label_efficiency --seeds 5
    accelerate launch recipes/probe.py --encoder outputs/simclr/checkpoint-500
    accelerate launch recipes/probe.py --encoder outputs/dinov2 --protocol patches --beside outputs/dino
    accelerate launch recipes/probe.py --encoder outputs/dinov2 --protocol patches --dataset my_scenes/
    accelerate launch recipes/probe.py --encoder outputs/mlm --dataset reviews.csv --label_column stars
    accelerate launch recipes/probe.py --encoder outputs/hubert --dataset my_sounds/ --protocol linear,layers
    accelerate launch recipes/probe.py --encoder outputs/mae --dataset scans/ --group_column sex hospital

What needs no training stands beside: random weights, the most frequent class, of images raw pixels and mean and
deviation of each channel, of texts a bag of words (TF-IDF of words and pairs), of recordings mean and deviation of
MFCC. Whether the data are images, recordings or texts, the encoder says. Without --dataset: the labelled data of the
encoder's run, as its folder remembers them, else what comes with hfssl. Ends with a table, results.json, pictures in
assets/, and report.html. Features are kept in features/, so that another protocol starts at once. The protocols stand
in hfssl/evaluation/{knn,linear_probe,few_shot,layers,label_efficiency}.py and image/patches.py.

Patches need images with masks: folders images/ and masks/ with files of the same names, whose values are classes (255:
none), or a column of masks beside that of the images; without --dataset scenes of letters, which come with hfssl. To
other protocols that are named beside patches the classes in an image's mask are its labels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hfssl.cli.command import command


@dataclass
class Probe:
    r"""
    > Probe

    Args:
        encoder (`str`):
            Folder or Hub id of the encoder, with its image processor, feature extractor or tokenizer; or a checkpoint
            of a run.
        beside (`list[str]`, *optional*):
            Other encoders of such samples, in a column each: folders, Hub ids, or checkpoints of runs. Each has the
            pooling that it was trained with, where `pooling` says nothing.
        protocol (`str`, *optional*, defaults to `"knn,linear,few_shot"`):
            Of knn, linear, few_shot, layers (a linear probe of each layer and of their weighted sum, of recordings),
            label_efficiency, finetune, attentive (of images: one query attends to all patches) and patches (of images
            with masks: segmentation by a linear layer and by k-NN, and how many patches are found again in another
            view), separated by commas.
        pooling (`str`, *optional*):
            Images: cls, mean, cls+mean or last4; texts: mean, cls or last; recordings: mean, or cls of an AST.
            Left out: the one that the encoder was trained with, where its folder says so, else what fits it.
        patch_image_size (`int`, *optional*):
            Height and width at which the protocol patches shows images, each as a whole. Left out: their own, but at
            least those of the encoder's image processor and at most twice that.
        batch_size (`int`, *optional*, defaults to `256`):
            Images, recordings (fewer of long ones), or windows of text, a forward pass.
        precision (`str`, *optional*, defaults to `"fp32"`):
            Autocast to bf16 or not; auto takes bf16 where the hardware computes in it.
        group_column (`list[str]`, *optional*):
            Columns that say of which group each sample is, such as sex or hospital: accuracy of each group, and the
            gap between them, by k-NN and linear probe. No probe sees them.
        update_card (`bool`, *optional*, defaults to `False`):
            Write the figures into the card, the results and the report of the encoder's own folder as well.
        output_dir (`str`, *optional*):
            Where results and pictures go; outputs/probe-<name of the encoder> when left out.
    """

    encoder: str
    beside: list[str] | None = None
    protocol: str = "knn,linear,few_shot"
    pooling: str | None = None
    patch_image_size: int | None = None
    batch_size: int = 256
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    group_column: list[str] | None = None
    update_card: bool = False
    output_dir: str | None = None


@command
def main():
    from hfssl import RecipeParser
    from hfssl.cli.labelled import LabelledDataArguments
    from hfssl.evaluation.encoder_folder import stock_folder, trained_pooling, weights_digest
    from hfssl.evaluation.finetune_settings import FinetuneSettings
    from hfssl.evaluation.groups import check_groups
    from hfssl.evaluation.modality import modality_of_encoder
    from hfssl.evaluation.probes import columns_of, parse_protocols, probe_table
    from hfssl.machine import process_state, use_all_cores
    from hfssl.report.card import add_to_card, card_of
    from hfssl.report.page import report_safely

    parser = RecipeParser(Probe, LabelledDataArguments, FinetuneSettings, description=__doc__)
    recipe, data, settings = parser.parse()
    use_all_cores()
    protocols = parse_protocols(recipe.protocol)
    check_groups(recipe.group_column or (), protocols)
    if recipe.update_card:
        card_of(recipe.encoder)  # it is there, before hours of work
    weights = weights_digest(recipe.encoder) if recipe.update_card else None  # those that are measured
    output_dir = recipe.output_dir or f"outputs/probe-{Path(recipe.encoder).resolve().name}"
    encoder = stock_folder(recipe.encoder)
    modality = modality_of_encoder(encoder).name
    masks = "patches" in protocols
    train, test = data.of_run(encoder, modality, masks).load(
        modality, masks=masks, compared_by=recipe.group_column or ()
    )
    pooling = recipe.pooling or trained_pooling(encoder)
    results = probe_table(
        encoder, None, train, test, protocols, output_dir=output_dir, pooling=pooling,
        batch_size=recipe.batch_size, precision=recipe.precision, settings=settings, name=recipe.encoder,
        command=parser.command_line(), patch_image_size=recipe.patch_image_size,
        beside={column: stock_folder(other) for column, other in columns_of(recipe.beside or ()).items()},
        beside_pooling=recipe.pooling,
    )  # fmt: skip
    if (page := report_safely(output_dir)) is not None:
        print(f"\nReport: {page}")
    if recipe.update_card and process_state().is_main_process:
        print(f"The figures are in {add_to_card(recipe.encoder, results, weights)} as well")
        report_safely(recipe.encoder)


if __name__ == "__main__":
    main()
