"""DeepCluster: from images without labels to an encoder that plain transformers loads, by clusters of its features.

accelerate launch recipes/deepcluster.py                                embedded letters, minutes on a laptop
accelerate launch recipes/deepcluster.py --dataset my_images/ --encoder vit-small-patch16 --max_steps 20000
accelerate launch recipes/deepcluster.py --dataset uoft-cs/cifar10 --encoder convnextv2-atto-patch2     32 x 32 pixels
accelerate launch recipes/deepcluster.py --dataset my_images/ --encoder facebook/dinov2-small    continue a checkpoint
accelerate launch recipes/deepcluster.py --dataset my_images/ --probe_dataset my_labelled_images/     k-NN on the way
accelerate launch recipes/deepcluster.py --config recipes/configs/deepcluster_imagenet.yaml
torchrun --nproc_per_node 2 recipes/deepcluster.py                      several processes, one batch

Clusters are made --num_clusterings times a run, each time by a pass over all images: about once for each pass of the
training is what the paper has. Images below 64 pixels have no small crops unless --local_crops says so. The same
command again continues a run that was stopped, also in the middle of making clusters. What the crops look like:
recipes/show_views.py --method deepcluster. Measured results: recipes/README.md.
"""

from hfssl.cli.command import command


@command
def main():
    from hfssl import (  # fmt: skip
        DeepclusterForPreTraining,
        DeepclusterPreTrainingConfig,
        RecipeParser,
        SSLTrainer,
        SSLTrainingArguments,
    )
    from hfssl.cli.image.data import ImageData, ImageDataArguments
    from hfssl.cli.image.encoders import VisionEncoderArguments, make_views
    from hfssl.cli.image.finish import finish_images
    from hfssl.cli.image.probes import ImageProbeArguments, image_evaluators
    from hfssl.cli.image.try_views import fit_views
    from hfssl.cli.modality import build_method
    from hfssl.data.image.views import ViewArguments

    adam = {"weight_decay": 0.05, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "lr_scheduler_type": "cosine"}
    short = {"max_steps": 300, "num_clusterings": 8}
    defaults = {"output_dir": "outputs/deepcluster", "per_device_train_batch_size": 256, **short, **adam}
    parser = RecipeParser(
        VisionEncoderArguments, ImageDataArguments, ViewArguments, DeepclusterPreTrainingConfig, ImageProbeArguments,
        SSLTrainingArguments, description=__doc__, defaults=defaults, unused=("max_tokens", "contrastive_batch_size"),
    )  # fmt: skip
    recipe, data_args, view_args, config, probe_args, args = parser.parse()
    checkpoint = args.claim_output_dir()
    data = ImageData(data_args, checkpoint)
    view_args = fit_views(DeepclusterForPreTraining, recipe, config, data, view_args, probe_args, args, parser.given)
    views = make_views(DeepclusterForPreTraining, recipe, config, data, view_args, parser.given)
    model = build_method(DeepclusterForPreTraining, recipe, config, views, args, parser.given)
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
