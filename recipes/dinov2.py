"""DINOv2: from images without labels to an encoder whose patches mean something too, by distillation of itself.

accelerate launch recipes/dinov2.py                                     embedded letters, minutes on a laptop
accelerate launch recipes/dinov2.py --dataset my_images/ --encoder dinov2-small-patch14 --max_steps 20000
accelerate launch recipes/dinov2.py --dataset uoft-cs/cifar10 --encoder vit-tiny-patch4             32 x 32 pixels
accelerate launch recipes/dinov2.py --dataset my_images/ --encoder facebook/dinov3-vits16-pretrain-lvd1689m \
    --probe_dataset my_labelled_images/         continue a checkpoint, beside how it came; not run with these weights
accelerate launch recipes/dinov2.py --dataset my_images/ --probe_dataset my_labelled_images/    k-NN while it trains
accelerate launch recipes/dinov2.py --config recipes/configs/dinov2_imagenet.yaml     or dinov2_vitl14, longer
accelerate launch recipes/dinov2.py --config recipes/configs/ibot_imagenet.yaml                     without KoLeo
accelerate launch recipes/dinov2.py --config recipes/configs/dinov3_imagenet.yaml   then _gram and _large_images
torchrun --nproc_per_node 2 recipes/dinov2.py                           several processes

Defaults are for short runs and are not the paper's: as in recipes/dino.py, the mean of the patches is projected,
through batch norm, and Sinkhorn's equal shares stand for the centres, at a lower temperature. Images below 64
pixels have no small crops unless --local_crops says so. The paper's settings: recipes/configs.

A checkpoint that is continued has defaults of its own: its heads, which are new, learn alone in the first tenth of
the steps (--freeze_encoder); then what is near the input learns more slowly (--layer_decay 0.9, --patch_embed_rate
0.2), by a teacher that moves slowly (--momentum_start 0.999), from its CLS token and without batch norm. Of images
with other channels than it was trained on its patch embedding is adapted; --colour_channels says which are colours.

DINOv3's encoders have rotary positions (RoPE), which in training the student sees shifted, stretched or rescaled at
random, as the configuration says: --encoder dinov3-small-patch16 --encoder_config '{"pos_embed_shift": 0.1,
"pos_embed_jitter": 1.2, "pos_embed_rescale": 2.0}'; null turns one off, and the preset has rescale 2 alone. Of
a checkpoint it changes what is given, and keeps the rest. Later phases: --gram_weight, --gram_teacher, --mixed_sizes.

The longer the run, the nearer to 1 --momentum_start should be; where a loss stays at that of chance, lower
--teacher_temperature_end. The same command again continues a run that was stopped. What the crops look like:
recipes/show_views.py --method dinov2. What the patches say: recipes/probe.py --encoder outputs/dinov2 --protocol
patches, on scenes of letters or on your own images with masks. Measured results: recipes/README.md.
"""

from hfssl.cli.command import command


@command
def main():
    from hfssl import Dinov2ForPreTraining, Dinov2PreTrainingConfig, RecipeParser, SSLTrainer, SSLTrainingArguments
    from hfssl.cli.image.data import ImageData, ImageDataArguments
    from hfssl.cli.image.encoders import Dinov2EncoderArguments, make_views
    from hfssl.cli.image.finish import finish_images
    from hfssl.cli.image.probes import ImageProbeArguments, image_evaluators
    from hfssl.cli.image.try_views import fit_views
    from hfssl.cli.modality import build_method
    from hfssl.data.image.views import ViewArguments

    adam = {"adam_beta2": 0.999, "adam_epsilon": 1e-8, "lr_scheduler_type": "cosine"}
    paper = {"weight_decay": 0.04, "weight_decay_end": 0.4, "max_grad_norm": 3.0}
    # a teacher that gets away from its start in so few steps, and what keeps images apart until then (see above)
    short = {
        "max_steps": 600, "momentum_start": 0.97, "pooling": "mean", "projector_batch_norm": True,
        "centering": "sinkhorn", "teacher_temperature_start": 0.02, "teacher_temperature_end": 0.02,
        "drop_path_rate": 0.1,
    }  # fmt: skip
    defaults = {"output_dir": "outputs/dinov2", "per_device_train_batch_size": 128, **short, **paper, **adam}
    parser = RecipeParser(
        Dinov2EncoderArguments, ImageDataArguments, ViewArguments, Dinov2PreTrainingConfig, ImageProbeArguments,
        SSLTrainingArguments, description=__doc__, defaults=defaults, unused=("max_tokens", "contrastive_batch_size"),
    )  # fmt: skip
    recipe, data_args, view_args, config, probe_args, args = parser.parse()
    checkpoint = args.claim_output_dir()
    data = ImageData(data_args, checkpoint)
    view_args = fit_views(Dinov2ForPreTraining, recipe, config, data, view_args, probe_args, args, parser.given)
    views = make_views(Dinov2ForPreTraining, recipe, config, data, view_args, parser.given)
    model = build_method(Dinov2ForPreTraining, recipe, config, views, args, parser.given)
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
