"""LeJEPA: from images without labels to an encoder that plain transformers loads, with one trade-off and no schedule.

accelerate launch recipes/lejepa.py                                     embedded letters, minutes on a laptop
accelerate launch recipes/lejepa.py --dataset my_images/ --encoder vit-small-patch16 --max_steps 20000
accelerate launch recipes/lejepa.py --dataset uoft-cs/cifar10 --encoder convnextv2-atto-patch2    32 x 32 pixels
accelerate launch recipes/lejepa.py --dataset my_images/ --encoder facebook/dinov2-small    continue a checkpoint
accelerate launch recipes/lejepa.py --dataset my_images/ --probe_dataset my_labelled_images/    k-NN while it trains
accelerate launch recipes/lejepa.py --config recipes/configs/lejepa_imagenet.yaml
torchrun --nproc_per_node 2 recipes/lejepa.py                                       several processes, one batch

All views of an image are to agree, while projections are spread like normal numbers. --sigreg_weight weighs one
against the other, and is all there is to tune; what it weighs grows with the images of a step. Images below 64 pixels
have no small crops unless --local_crops says so. The same command again continues a run that was stopped. What the
crops look like: recipes/show_views.py --method lejepa. Measured results: recipes/README.md.
"""

from hfssl.cli.command import command


@command
def main():
    from hfssl import LejepaForPreTraining, LejepaPreTrainingConfig, RecipeParser, SSLTrainer, SSLTrainingArguments
    from hfssl.cli.image.data import ImageData, ImageDataArguments
    from hfssl.cli.image.encoders import VisionEncoderArguments, make_views
    from hfssl.cli.image.finish import finish_images
    from hfssl.cli.image.probes import ImageProbeArguments, image_evaluators
    from hfssl.cli.image.try_views import fit_views
    from hfssl.cli.modality import build_method
    from hfssl.data.image.views import ViewArguments

    adam = {"weight_decay": 0.05, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "lr_scheduler_type": "cosine"}
    defaults = {"output_dir": "outputs/lejepa", "max_steps": 500, "per_device_train_batch_size": 256, **adam}
    parser = RecipeParser(
        VisionEncoderArguments, ImageDataArguments, ViewArguments, LejepaPreTrainingConfig, ImageProbeArguments,
        SSLTrainingArguments, description=__doc__, defaults=defaults, unused=("max_tokens", "contrastive_batch_size"),
    )  # fmt: skip
    recipe, data_args, view_args, config, probe_args, args = parser.parse()
    checkpoint = args.claim_output_dir()
    data = ImageData(data_args, checkpoint)
    view_args = fit_views(LejepaForPreTraining, recipe, config, data, view_args, probe_args, args, parser.given)
    views = make_views(LejepaForPreTraining, recipe, config, data, view_args, parser.given)
    model = build_method(LejepaForPreTraining, recipe, config, views, args, parser.given)
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
