"""MAE: from images without labels to an encoder that plain transformers loads, by filling in hidden patches.

accelerate launch recipes/mae.py                                        embedded letters, minutes on a laptop
accelerate launch recipes/mae.py --dataset my_images/ --encoder vit-small-patch16 --max_steps 20000
accelerate launch recipes/mae.py --dataset uoft-cs/cifar10 --encoder vit-tiny-patch4                32 x 32 pixels
accelerate launch recipes/mae.py --dataset my_images/ --encoder facebook/vit-mae-base        continue a checkpoint
accelerate launch recipes/mae.py --dataset my_images/ --probe_dataset my_labelled_images/       k-NN while it trains
accelerate launch recipes/mae.py --config recipes/configs/mae_imagenet.yaml
torchrun --nproc_per_node 2 recipes/mae.py                              several processes

MAE is a start for fine-tuning (recipes/finetune.py) more than a maker of features: k-NN says little about it. For
pictures on a flat ground (drawings, logos, charts) pass --norm_pix_loss false, as is done for the letters: a patch of
one colour, normalised, teaches its colour only. The same command again continues a run that was stopped. Measured
results: recipes/README.md.
"""

from hfssl.cli.command import command


@command
def main():
    from hfssl import MaeForPreTraining, MaePreTrainingConfig, RecipeParser, SSLTrainer, SSLTrainingArguments
    from hfssl.cli.image.data import ImageData, ImageDataArguments
    from hfssl.cli.image.encoders import MaeEncoderArguments, make_views
    from hfssl.cli.image.finish import finish_images
    from hfssl.cli.image.probes import ImageProbeArguments, image_evaluators
    from hfssl.cli.image.try_views import fit_views
    from hfssl.cli.modality import build_method
    from hfssl.data.image.views import ViewArguments

    # of the paper, but for the batch
    adam = {"weight_decay": 0.05, "adam_beta2": 0.95, "adam_epsilon": 1e-8, "lr_scheduler_type": "cosine"}
    defaults = {"output_dir": "outputs/mae", "max_steps": 300, "per_device_train_batch_size": 128, **adam}
    parser = RecipeParser(
        MaeEncoderArguments, ImageDataArguments, ViewArguments, MaePreTrainingConfig, ImageProbeArguments,
        SSLTrainingArguments, description=__doc__, defaults=defaults,
        unused=("max_tokens", "local_crops", "local_size", "local_crop_scale", "contrastive_batch_size"),
    )  # fmt: skip
    recipe, data_args, view_args, config, probe_args, args = parser.parse()
    checkpoint = args.claim_output_dir()
    data = ImageData(data_args, checkpoint)
    view_args = fit_views(MaeForPreTraining, recipe, config, data, view_args, probe_args, args, parser.given)
    views = make_views(MaeForPreTraining, recipe, config, data, view_args, parser.given)
    model = build_method(MaeForPreTraining, recipe, config, views, args, parser.given)
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
