"""VICReg: from images without labels to an encoder that plain transformers loads, by dimensions that vary.

accelerate launch recipes/vicreg.py                                     embedded letters, minutes on a laptop
accelerate launch recipes/vicreg.py --dataset my_images/ --encoder vit-small-patch16 --max_steps 20000
accelerate launch recipes/vicreg.py --dataset uoft-cs/cifar10 --encoder convnextv2-atto-patch2    32 x 32 pixels
accelerate launch recipes/vicreg.py --dataset my_images/ --encoder facebook/dinov2-small    continue a checkpoint
accelerate launch recipes/vicreg.py --dataset my_images/ --probe_dataset my_labelled_images/    k-NN while it trains
accelerate launch recipes/vicreg.py --config recipes/configs/vicreg_imagenet.yaml
torchrun --nproc_per_node 2 recipes/vicreg.py                                       several processes, one batch

Views of an image are to agree while each dimension of a projection varies and no two vary together: what that needs is
in the statistics of a batch, so the more images a step, the better. The log shows the three terms, before their
weights. The same command again continues a run that was stopped. What the views look like: recipes/show_views.py
--method vicreg. Measured results: recipes/README.md.
"""

from hfssl.cli.command import command


@command
def main():
    from hfssl import RecipeParser, SSLTrainer, SSLTrainingArguments, VicregForPreTraining, VicregPreTrainingConfig
    from hfssl.cli.image.data import ImageData, ImageDataArguments
    from hfssl.cli.image.encoders import VisionEncoderArguments, make_views
    from hfssl.cli.image.finish import finish_images
    from hfssl.cli.image.probes import ImageProbeArguments, image_evaluators
    from hfssl.cli.image.try_views import fit_views
    from hfssl.cli.modality import build_method
    from hfssl.data.image.views import ViewArguments

    adam = {"weight_decay": 0.05, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "lr_scheduler_type": "cosine"}
    defaults = {"output_dir": "outputs/vicreg", "max_steps": 500, "per_device_train_batch_size": 256, **adam}
    parser = RecipeParser(
        VisionEncoderArguments, ImageDataArguments, ViewArguments, VicregPreTrainingConfig, ImageProbeArguments,
        SSLTrainingArguments, description=__doc__, defaults=defaults,
        unused=("max_tokens", "local_crops", "local_size", "local_crop_scale", "contrastive_batch_size"),
    )  # fmt: skip
    recipe, data_args, view_args, config, probe_args, args = parser.parse()
    checkpoint = args.claim_output_dir()
    data = ImageData(data_args, checkpoint)
    view_args = fit_views(VicregForPreTraining, recipe, config, data, view_args, probe_args, args, parser.given)
    views = make_views(VicregForPreTraining, recipe, config, data, view_args, parser.given)
    model = build_method(VicregForPreTraining, recipe, config, views, args, parser.given)
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
