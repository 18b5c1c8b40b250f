"""BYOL: from images without labels to an encoder that plain transformers loads, without any negatives.

accelerate launch recipes/byol.py                                       embedded letters, minutes on a laptop
accelerate launch recipes/byol.py --dataset my_images/ --encoder vit-small-patch16 --max_steps 20000
accelerate launch recipes/byol.py --dataset uoft-cs/cifar10 --encoder convnextv2-atto-patch2        32 x 32 pixels
accelerate launch recipes/byol.py --dataset my_images/ --encoder facebook/dinov2-small       continue a checkpoint
accelerate launch recipes/byol.py --dataset my_images/ --probe_dataset my_labelled_images/      k-NN while it trains
accelerate launch recipes/byol.py --config recipes/configs/byol_imagenet.yaml
torchrun --nproc_per_node 2 recipes/byol.py                             several processes, one batch

Without negatives what two views have in common has to be found by a network that knows nothing yet: where a run
narrows, make the views milder, or bring --momentum_start nearer to 1. Narrow encoders from scratch get
--last_batch_norm, and Vision Transformers --freeze_patch_embed too, which keep projections from falling into a few
directions. The same command again continues a run that was stopped. What the views look like:
recipes/show_views.py --method byol. Measured results: recipes/README.md.
"""

from hfssl.cli.command import command


@command
def main():
    from hfssl import ByolForPreTraining, ByolPreTrainingConfig, RecipeParser, SSLTrainer, SSLTrainingArguments
    from hfssl.cli.image.data import ImageData, ImageDataArguments
    from hfssl.cli.image.encoders import VisionEncoderArguments, make_views
    from hfssl.cli.image.finish import finish_images
    from hfssl.cli.image.probes import ImageProbeArguments, image_evaluators
    from hfssl.cli.image.try_views import fit_views
    from hfssl.cli.modality import build_method
    from hfssl.data.image.views import ViewArguments

    adam = {"weight_decay": 0.05, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "lr_scheduler_type": "cosine"}
    defaults = {"output_dir": "outputs/byol", "max_steps": 400, "per_device_train_batch_size": 256, **adam}
    parser = RecipeParser(
        VisionEncoderArguments, ImageDataArguments, ViewArguments, ByolPreTrainingConfig, ImageProbeArguments,
        SSLTrainingArguments, description=__doc__, defaults=defaults,
        unused=("max_tokens", "local_crops", "local_size", "local_crop_scale", "contrastive_batch_size"),
    )  # fmt: skip
    recipe, data_args, view_args, config, probe_args, args = parser.parse()
    checkpoint = args.claim_output_dir()
    data = ImageData(data_args, checkpoint)
    view_args = fit_views(ByolForPreTraining, recipe, config, data, view_args, probe_args, args, parser.given)
    views = make_views(ByolForPreTraining, recipe, config, data, view_args, parser.given)
    model = build_method(ByolForPreTraining, recipe, config, views, args, parser.given)
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
