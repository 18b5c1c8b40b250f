"""SimSiam: from images without labels to an encoder that plain transformers loads, with neither negatives nor a
teacher.

accelerate launch recipes/simsiam.py                                    embedded letters, minutes on a laptop
accelerate launch recipes/simsiam.py --dataset my_images/ --encoder vit-small-patch16 --max_steps 20000
accelerate launch recipes/simsiam.py --dataset uoft-cs/cifar10 --encoder convnextv2-atto-patch2    32 x 32 pixels
accelerate launch recipes/simsiam.py --dataset my_images/ --encoder facebook/dinov2-small    continue a checkpoint
accelerate launch recipes/simsiam.py --dataset my_images/ --probe_dataset my_labelled_images/    k-NN while it trains
accelerate launch recipes/simsiam.py --config recipes/configs/simsiam_imagenet.yaml
torchrun --nproc_per_node 2 recipes/simsiam.py                                      several processes, one batch

Nothing but a predictor and a gradient that stops keeps images apart: where a run narrows, make the views milder, or
lower --learning_rate. The optimizer is not the paper's SGD, which in some hundred steps finds less; for long runs take
that of the yaml above. The learning rate of the predictor does not fall with that of the others, unless
--constant_predictor_rate false says so. The same command again continues a run that was stopped. What the views look
like: recipes/show_views.py --method simsiam. Measured results: recipes/README.md.
"""

from hfssl.cli.command import command


@command
def main():
    from hfssl import RecipeParser, SimsiamForPreTraining, SimsiamPreTrainingConfig, SSLTrainer, SSLTrainingArguments
    from hfssl.cli.image.data import ImageData, ImageDataArguments
    from hfssl.cli.image.encoders import VisionEncoderArguments, make_views
    from hfssl.cli.image.finish import finish_images
    from hfssl.cli.image.probes import ImageProbeArguments, image_evaluators
    from hfssl.cli.image.try_views import fit_views
    from hfssl.cli.modality import build_method
    from hfssl.data.image.views import ViewArguments

    adam = {"weight_decay": 0.05, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "lr_scheduler_type": "cosine"}
    slow_start = {"warmup_steps": 0.2}  # with less the predictor falls behind, and directions are lost
    defaults = {
        "output_dir": "outputs/simsiam", "max_steps": 500, "per_device_train_batch_size": 256, **adam, **slow_start,
    }  # fmt: skip
    parser = RecipeParser(
        VisionEncoderArguments, ImageDataArguments, ViewArguments, SimsiamPreTrainingConfig, ImageProbeArguments,
        SSLTrainingArguments, description=__doc__, defaults=defaults,
        unused=("max_tokens", "local_crops", "local_size", "local_crop_scale", "contrastive_batch_size"),
    )  # fmt: skip
    recipe, data_args, view_args, config, probe_args, args = parser.parse()
    checkpoint = args.claim_output_dir()
    data = ImageData(data_args, checkpoint)
    view_args = fit_views(SimsiamForPreTraining, recipe, config, data, view_args, probe_args, args, parser.given)
    views = make_views(SimsiamForPreTraining, recipe, config, data, view_args, parser.given)
    model = build_method(SimsiamForPreTraining, recipe, config, views, args, parser.given)
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
