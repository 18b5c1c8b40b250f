"""SwAV: from images without labels to an encoder that plain transformers loads, by clusters that two crops agree on.

accelerate launch recipes/swav.py                                       embedded letters, minutes on a laptop
accelerate launch recipes/swav.py --dataset my_images/ --encoder vit-small-patch16 --max_steps 20000
accelerate launch recipes/swav.py --dataset uoft-cs/cifar10 --encoder convnextv2-atto-patch2        32 x 32 pixels
accelerate launch recipes/swav.py --dataset my_images/ --encoder facebook/dinov2-small       continue a checkpoint
accelerate launch recipes/swav.py --dataset my_images/ --probe_dataset my_labelled_images/      k-NN while it trains
accelerate launch recipes/swav.py --config recipes/configs/swav_imagenet.yaml
torchrun --nproc_per_node 2 recipes/swav.py                             several processes, one batch

Defaults are for short runs: codes are harder than the paper's, and prototypes wait longer. With fewer images a step
than --num_prototypes pass --queue_size as well; where the loss stays at that of chance, lower --sinkhorn_epsilon.
Images below 64 pixels have no small crops unless --local_crops says so. The same command again continues a run that
was stopped. What the crops look like: recipes/show_views.py --method swav. Measured results: recipes/README.md.
"""

from hfssl.cli.command import command


@command
def main():
    from hfssl import RecipeParser, SSLTrainer, SSLTrainingArguments, SwavForPreTraining, SwavPreTrainingConfig
    from hfssl.cli.image.data import ImageData, ImageDataArguments
    from hfssl.cli.image.encoders import VisionEncoderArguments, make_views
    from hfssl.cli.image.finish import finish_images
    from hfssl.cli.image.probes import ImageProbeArguments, image_evaluators
    from hfssl.cli.image.try_views import fit_views
    from hfssl.cli.modality import build_method
    from hfssl.data.image.views import ViewArguments

    adam = {"weight_decay": 0.05, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "lr_scheduler_type": "cosine"}
    # codes that tell images apart from the first steps on, of prototypes that wait until features do
    short = {"max_steps": 400, "sinkhorn_epsilon": 0.03, "freeze_prototypes": 0.3}
    defaults = {"output_dir": "outputs/swav", "per_device_train_batch_size": 256, **short, **adam}
    parser = RecipeParser(
        VisionEncoderArguments, ImageDataArguments, ViewArguments, SwavPreTrainingConfig, ImageProbeArguments,
        SSLTrainingArguments, description=__doc__, defaults=defaults, unused=("max_tokens", "contrastive_batch_size"),
    )  # fmt: skip
    recipe, data_args, view_args, config, probe_args, args = parser.parse()
    checkpoint = args.claim_output_dir()
    data = ImageData(data_args, checkpoint)
    view_args = fit_views(SwavForPreTraining, recipe, config, data, view_args, probe_args, args, parser.given)
    views = make_views(SwavForPreTraining, recipe, config, data, view_args, parser.given)
    model = build_method(SwavForPreTraining, recipe, config, views, args, parser.given)
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
