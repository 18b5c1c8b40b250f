"""SimCLR: from images without labels to an encoder that plain transformers loads, by contrast with other images.

accelerate launch recipes/simclr.py                                     embedded digits, minutes on a laptop
accelerate launch recipes/simclr.py --dataset my_images/ --encoder vit-small-patch16 --max_steps 20000
accelerate launch recipes/simclr.py --dataset uoft-cs/cifar10 --encoder convnextv2-atto-patch2      32 x 32 pixels
accelerate launch recipes/simclr.py --dataset my_images/ --encoder facebook/dinov2-small     continue a checkpoint
accelerate launch recipes/simclr.py --dataset my_images/ --probe_dataset my_labelled_images/    k-NN while it trains
accelerate launch recipes/simclr.py --config recipes/configs/simclr_imagenet.yaml
torchrun --nproc_per_node 2 recipes/simclr.py                           several processes, one batch

The more images a step, the better. The same command again continues a run that was stopped. What the views look like:
recipes/show_views.py. Measured results: recipes/README.md.
"""

from dataclasses import dataclass

from hfssl.errors import explained


@dataclass
class Encoder:
    r"""
    > Encoder

    Args:
        encoder (`str`, *optional*, defaults to `"vit-mini-patch4"`):
            vit-mini-patch4, vit-tiny-patch4, convnextv2-atto-patch2 or convnextv2-tiny-patch2 for images of 32 pixels
            or less; vit-tiny-patch16, vit-small-patch16, vit-base-patch16, resnet-18, resnet-50 or
            convnextv2-tiny-patch4 for larger ones; a config file; or a Hub id or folder to continue from.
        attention (`str`, *optional*, defaults to `"auto"`):
            auto, eager, sdpa, flash_attention_2 or flex_attention.
    """

    encoder: str = "vit-mini-patch4"
    attention: str = "auto"


@explained
def main():
    from hfssl import RecipeParser, SimclrPreTrainingConfig, SSLTrainer, SSLTrainingArguments
    from hfssl.data.image_data import ImageData, ImageDataArguments
    from hfssl.data.views import ViewArguments
    from hfssl.evaluation.held_out_loss import HeldOutLossEvaluator
    from hfssl.evaluation.probes import OnlineKnn, ProbeArguments
    from hfssl.image_processing import build_image_processor
    from hfssl.report import finish_images
    from hfssl.vision_encoders import build_simclr, is_checkpoint, make_views

    adam = {"weight_decay": 0.05, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "lr_scheduler_type": "cosine"}
    defaults = {"output_dir": "outputs/simclr", "max_steps": 200, "per_device_train_batch_size": 256, **adam}
    parser = RecipeParser(
        Encoder, ImageDataArguments, ViewArguments, SimclrPreTrainingConfig, ProbeArguments, SSLTrainingArguments,
        description=__doc__, defaults=defaults,
    )  # fmt: skip
    recipe, data_args, view_args, config, probe_args, args = parser.parse()
    args.claim_output_dir()
    data = ImageData(data_args)
    views = make_views("simclr", recipe, config, data, view_args, parser.given)
    model = build_simclr(recipe, config, views.image_size, args)
    processor = build_image_processor(views.image_size, views.mean, views.std)
    share = {"rank": args.process_index, "world_size": args.world_size}
    evaluators = [HeldOutLossEvaluator(data.held_out, views, **share)]
    probes = probe_args.load(data_args.dataset)
    if probes:
        evaluators.append(OnlineKnn(*probes, processor, pooling=probe_args.probe_pooling))
    trainer = SSLTrainer(
        model, args, data.stream(args, views), evaluators=evaluators, settings=data.settings | views.settings,
        held_out=data.held_out, processing_class=processor,
    )  # fmt: skip
    trainer.train()
    base_model = recipe.encoder if is_checkpoint(recipe.encoder) else None
    finish_images(trainer, data, views, probes, base_model, probe_args.probe_pooling)


if __name__ == "__main__":
    main()
