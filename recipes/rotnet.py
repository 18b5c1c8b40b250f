"""RotNet: from images without labels to an encoder that plain transformers loads, by telling which way is up.

accelerate launch recipes/rotnet.py                                     embedded letters, minutes on a laptop
accelerate launch recipes/rotnet.py --dataset my_images/ --encoder resnet-50 --image_size 224 --max_steps 20000
accelerate launch recipes/rotnet.py --dataset uoft-cs/cifar10 --encoder convnextv2-atto-patch2      32 x 32 pixels
accelerate launch recipes/rotnet.py --dataset my_images/ --encoder facebook/dinov2-small     continue a checkpoint
accelerate launch recipes/rotnet.py --dataset my_images/ --probe_dataset my_labelled_images/     k-NN while it trains
accelerate launch recipes/rotnet.py --config recipes/configs/rotnet_imagenet.yaml
torchrun --nproc_per_node 2 recipes/rotnet.py                           several processes, one batch

Each image of a batch is there four times. Of letters that look the same upside down (H, I, N, O, S, X, Z) or like
another one lying (N and Z) the rotation cannot be told, so the loss ends above 0. k-NN is not what the method is good
at: look at the linear probe. The same command again continues a run that was stopped. Measured results:
recipes/README.md.
"""

from hfssl.cli.command import command


@command
def main():
    from hfssl import RecipeParser, RotnetForPreTraining, RotnetPreTrainingConfig, SSLTrainer, SSLTrainingArguments
    from hfssl.cli.image.data import ImageData, ImageDataArguments
    from hfssl.cli.image.encoders import VisionEncoderArguments, make_views
    from hfssl.cli.image.finish import finish_images
    from hfssl.cli.image.probes import ImageProbeArguments, image_evaluators
    from hfssl.cli.image.try_views import fit_views
    from hfssl.cli.modality import build_method
    from hfssl.data.image.views import ViewArguments

    adam = {"weight_decay": 0.05, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "lr_scheduler_type": "cosine"}
    # each image four times
    defaults = {"output_dir": "outputs/rotnet", "max_steps": 600, "per_device_train_batch_size": 64, **adam}
    parser = RecipeParser(
        VisionEncoderArguments, ImageDataArguments, ViewArguments, RotnetPreTrainingConfig, ImageProbeArguments,
        SSLTrainingArguments, description=__doc__, defaults=defaults,
        unused=("max_tokens", "local_crops", "local_size", "local_crop_scale", "contrastive_batch_size"),
    )  # fmt: skip
    recipe, data_args, view_args, config, probe_args, args = parser.parse()
    checkpoint = args.claim_output_dir()
    data = ImageData(data_args, checkpoint)
    view_args = fit_views(RotnetForPreTraining, recipe, config, data, view_args, probe_args, args, parser.given)
    views = make_views(RotnetForPreTraining, recipe, config, data, view_args, parser.given)
    model = build_method(RotnetForPreTraining, recipe, config, views, args, parser.given)
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
