"""Is an encoder any good? Probes of its frozen features, beside those of what needs no training.

    accelerate launch recipes/probe.py outputs/simclr
    accelerate launch recipes/probe.py outputs/simclr --dataset my_images/ --protocol knn,linear,few_shot
    accelerate launch recipes/probe.py facebook/dinov2-small --dataset uoft-cs/cifar10 --pooling cls+mean
    accelerate launch recipes/probe.py outputs/simclr --protocol label_efficiency --seeds 5
    accelerate launch recipes/probe.py outputs/simclr/checkpoint-500
    accelerate launch recipes/probe.py outputs/dinov2 --protocol patches --beside outputs/dino
    accelerate launch recipes/probe.py outputs/dinov2 --protocol patches --dataset my_scenes/
    accelerate launch recipes/probe.py outputs/mlm --dataset reviews.csv --label_column stars
    accelerate launch recipes/probe.py outputs/hubert --dataset my_sounds/ --protocol linear,layers
    accelerate launch recipes/probe.py outputs/mae --dataset scans/ --group_column sex hospital

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

from hfssl.cli.command import command
from hfssl.commands import first_named


@command
def main():
    from hfssl import RecipeParser
    from hfssl.cli.labelled import LabelledDataArguments
    from hfssl.cli.measuring import Probe
    from hfssl.evaluation.encoder_folder import trained_pooling
    from hfssl.evaluation.finetune_settings import FinetuneSettings
    from hfssl.evaluation.modality import modality_of_encoder
    from hfssl.evaluation.probes import probe_table
    from hfssl.machine import use_all_cores

    parser = RecipeParser(Probe, LabelledDataArguments, FinetuneSettings, description=__doc__)
    recipe, data, settings = parser.parse(first_named("encoder"))
    use_all_cores()
    encoder = recipe.open()
    modality, masks = modality_of_encoder(encoder).name, "patches" in recipe.protocols
    labelled = data.of_run(encoder, modality, masks)
    train, test = labelled.load(modality, masks=masks, compared_by=recipe.group_column or ())
    results = probe_table(
        encoder, None, train, test, recipe.protocols, output_dir=recipe.folder,
        pooling=recipe.pooling or trained_pooling(encoder), batch_size=recipe.batch_size, precision=recipe.precision,
        settings=settings, name=recipe.encoder, command=parser.command_line(),
        patch_image_size=recipe.patch_image_size, beside=recipe.open_beside(), beside_pooling=recipe.pooling,
    )  # fmt: skip
    recipe.finish(results)


if __name__ == "__main__":
    main()
