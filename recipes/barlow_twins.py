"""Barlow Twins: from images without labels to an encoder that plain transformers loads, by dimensions that differ.

accelerate launch recipes/barlow_twins.py                               embedded letters, minutes on a laptop
accelerate launch recipes/barlow_twins.py --dataset my_images/ --encoder vit-small-patch16 --max_steps 20000
accelerate launch recipes/barlow_twins.py --dataset uoft-cs/cifar10 --encoder convnextv2-atto-patch2    32 x 32 pixels
accelerate launch recipes/barlow_twins.py --dataset my_images/ --encoder facebook/dinov2-small    continue a checkpoint
accelerate launch recipes/barlow_twins.py --dataset my_images/ --probe_dataset my_labelled_images/     k-NN in between
accelerate launch recipes/barlow_twins.py --config recipes/configs/barlow_twins_imagenet.yaml
torchrun --nproc_per_node 2 recipes/barlow_twins.py                                 several processes, one batch

Each dimension of a projection is to say the same of two views, and no two dimensions the same: what that needs is in
the statistics of a batch, so the more images a step, the better. The same command again continues a run that was
stopped. What the views look like: recipes/show_views.py --method barlow_twins. Measured results: recipes/README.md.
"""

from hfssl.cli.command import command


@command
def main():
    from hfssl import (
        BarlowTwinsForPreTraining,
        BarlowTwinsPreTrainingConfig,
        RecipeParser,
        SSLTrainer,
        SSLTrainingArguments,
    )
    from hfssl.cli.image.data import ImageData, ImageDataArguments
    from hfssl.cli.image.encoders import VisionEncoderArguments, make_views
    from hfssl.cli.image.finish import finish_images
    from hfssl.cli.image.probes import ImageProbeArguments, image_evaluators
    from hfssl.cli.image.try_views import fit_views
    from hfssl.cli.modality import build_method
    from hfssl.data.image.views import ViewArguments

    adam = {"weight_decay": 0.05, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "lr_scheduler_type": "cosine"}
    defaults = {"output_dir": "outputs/barlow_twins", "max_steps": 500, "per_device_train_batch_size": 256, **adam}
    parser = RecipeParser(
        VisionEncoderArguments, ImageDataArguments, ViewArguments, BarlowTwinsPreTrainingConfig, ImageProbeArguments,
        SSLTrainingArguments, description=__doc__, defaults=defaults,
        unused=("max_tokens", "local_crops", "local_size", "local_crop_scale", "contrastive_batch_size"),
    )  # fmt: skip
    recipe, data_args, view_args, config, probe_args, args = parser.parse()
    checkpoint = args.claim_output_dir()
    data = ImageData(data_args, checkpoint)
    view_args = fit_views(BarlowTwinsForPreTraining, recipe, config, data, view_args, probe_args, args, parser.given)
    views = make_views(BarlowTwinsForPreTraining, recipe, config, data, view_args, parser.given)
    model = build_method(BarlowTwinsForPreTraining, recipe, config, views, args, parser.given)
    processor = views.image_processor()
    evaluators = image_evaluators(model, data, views, processor, probe_args, args)
    trainer = SSLTrainer(
        model, args, data.stream(args, views), evaluators=evaluators, settings=data.settings | views.settings,
        held_out=data.held_out, processing_class=processor,
    )  # fmt: skip
    trainer.train()
    finish_images(trainer, data, views, recipe.base_model)


if __name__ == "__main__":
    main()
