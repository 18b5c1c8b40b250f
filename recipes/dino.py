"""DINO: from images without labels to an encoder that plain transformers loads, by distillation of itself.

accelerate launch recipes/dino.py                                       embedded letters, minutes on a laptop
accelerate launch recipes/dino.py --dataset my_images/ --encoder vit-small-patch16 --max_steps 20000
accelerate launch recipes/dino.py --dataset uoft-cs/cifar10 --encoder convnextv2-atto-patch2        32 x 32 pixels
accelerate launch recipes/dino.py --dataset my_images/ --encoder facebook/dinov2-small       continue a checkpoint
accelerate launch recipes/dino.py --dataset my_images/ --probe_dataset my_labelled_images/      k-NN while it trains
accelerate launch recipes/dino.py --config recipes/configs/dino_imagenet.yaml
torchrun --nproc_per_node 2 recipes/dino.py                             several processes, one batch

Defaults are for short runs and are not the paper's. To a fresh ViT all images are nearly the same, and with the
paper's CLS token, plain head and centre so few steps end where every prototype is as likely for all of them. So the
mean of the patches is projected, through batch norm, and Sinkhorn's equal shares stand for the centre, at a lower
temperature. Images below 64 pixels have no small crops unless --local_crops says so. The paper's settings:
recipes/configs.

The longer the run, the nearer to 1 --momentum_start should be; where the loss stays at that of chance, lower
--teacher_temperature_end. The same command again continues a run that was stopped. What the crops look like:
recipes/show_views.py --method dino. Measured results: recipes/README.md.
"""

from hfssl.cli.command import command


@command
def main():
    from hfssl import DinoForPreTraining, DinoPreTrainingConfig, RecipeParser, SSLTrainer, SSLTrainingArguments
    from hfssl.cli.image.data import ImageData, ImageDataArguments
    from hfssl.cli.image.encoders import VisionEncoderArguments, make_views
    from hfssl.cli.image.finish import finish_images
    from hfssl.cli.image.probes import ImageProbeArguments, image_evaluators
    from hfssl.cli.image.try_views import fit_views
    from hfssl.cli.modality import build_method
    from hfssl.data.image.views import ViewArguments

    adam = {"adam_beta2": 0.999, "adam_epsilon": 1e-8, "lr_scheduler_type": "cosine"}
    paper = {"weight_decay": 0.04, "weight_decay_end": 0.4, "max_grad_norm": 3.0}
    # a teacher that gets away from its start in so few steps, and what keeps images apart until then (see above)
    short = {
        "max_steps": 400, "momentum_start": 0.97, "pooling": "mean", "projector_batch_norm": True,
        "centering": "sinkhorn", "teacher_temperature_start": 0.02, "teacher_temperature_end": 0.02,
    }  # fmt: skip
    defaults = {"output_dir": "outputs/dino", "per_device_train_batch_size": 256, **short, **paper, **adam}
    parser = RecipeParser(
        VisionEncoderArguments, ImageDataArguments, ViewArguments, DinoPreTrainingConfig, ImageProbeArguments,
        SSLTrainingArguments, description=__doc__, defaults=defaults, unused=("max_tokens", "contrastive_batch_size"),
    )  # fmt: skip
    recipe, data_args, view_args, config, probe_args, args = parser.parse()
    checkpoint = args.claim_output_dir()
    data = ImageData(data_args, checkpoint)
    view_args = fit_views(DinoForPreTraining, recipe, config, data, view_args, probe_args, args, parser.given)
    views = make_views(DinoForPreTraining, recipe, config, data, view_args, parser.given)
    model = build_method(DinoForPreTraining, recipe, config, views, args, parser.given)
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
