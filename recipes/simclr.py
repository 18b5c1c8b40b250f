"""SimCLR: from images or recordings without labels to an encoder that plain transformers loads, by contrast.

accelerate launch recipes/simclr.py                                     embedded letters, minutes on a laptop
accelerate launch recipes/simclr.py --dataset my_images/ --encoder vit-small-patch16 --max_steps 20000
accelerate launch recipes/simclr.py --dataset uoft-cs/cifar10 --encoder convnextv2-atto-patch2      32 x 32 pixels
accelerate launch recipes/simclr.py --dataset my_images/ --encoder facebook/dinov2-small     continue a checkpoint
accelerate launch recipes/simclr.py --dataset my_images/ --probe_dataset my_labelled_images/    k-NN while it trains
accelerate launch recipes/simclr.py --config recipes/configs/simclr_imagenet.yaml
torchrun --nproc_per_node 2 recipes/simclr.py                           several processes, one batch
accelerate launch recipes/simclr.py --modality audio --dataset my_recordings/ --encoder ast-small     spectrograms
python recipes/simclr.py --modality audio --help                        flags of recordings

The more samples a step, the better. --decoupled true is for fewer (DCL); with --nearest_neighbour_queue 16384 the
nearest neighbours of views among earlier samples stand for them (NNCLR). The same command again continues a run that
was stopped. What the views look like: recipes/show_views.py. Measured results: recipes/README.md.
"""

import sys

from hfssl.cli.command import command
from hfssl.cli.declared import function_word


ADAM = {"weight_decay": 0.05, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "lr_scheduler_type": "cosine"}
SHORT = {"contrastive_temperature": 0.2}  # with the paper's 0.1 short runs learn more slowly
DEFAULTS = {**SHORT, **ADAM}


def image():
    from hfssl import RecipeParser, SimclrForPreTraining, SimclrPreTrainingConfig, SSLTrainer, SSLTrainingArguments
    from hfssl.cli.image.data import ImageData, ImageDataArguments
    from hfssl.cli.image.encoders import ContrastEncoderArguments, make_views
    from hfssl.cli.image.finish import finish_images
    from hfssl.cli.image.probes import ImageProbeArguments, image_evaluators
    from hfssl.cli.image.try_views import fit_views
    from hfssl.cli.modality import build_method
    from hfssl.data.image.views import ViewArguments

    defaults = {"output_dir": "outputs/simclr", "per_device_train_batch_size": 256, "max_steps": 500, **DEFAULTS}
    parser = RecipeParser(
        ContrastEncoderArguments, ImageDataArguments, ViewArguments, SimclrPreTrainingConfig, ImageProbeArguments,
        SSLTrainingArguments, description=__doc__, defaults=defaults,
        unused=("max_tokens", "local_crops", "local_size", "local_crop_scale"),
    )  # fmt: skip
    recipe, data_args, view_args, config, probe_args, args = parser.parse()
    data = ImageData(data_args, args.claim_output_dir())
    view_args = fit_views(SimclrForPreTraining, recipe, config, data, view_args, probe_args, args, parser.given)
    views = make_views(SimclrForPreTraining, recipe, config, data, view_args, parser.given)
    model = build_method(SimclrForPreTraining, recipe, config, views, args, parser.given)
    processor = views.image_processor()
    evaluators = image_evaluators(model, data, views, processor, probe_args, args)
    trainer = SSLTrainer(
        model, args, data.stream(args, views), evaluators=evaluators, settings=data.settings | views.settings,
        held_out=data.held_out, processing_class=processor,
    )  # fmt: skip
    trainer.train()
    finish_images(trainer, data, views, recipe.base_model)


def audio():
    from hfssl import RecipeParser, SimclrForPreTraining, SimclrPreTrainingConfig, SSLTrainer, SSLTrainingArguments
    from hfssl.cli.audio.data import AudioData, AudioDataArguments
    from hfssl.cli.audio.encoders import SpectrogramEncoderArguments, make_processor
    from hfssl.cli.audio.finish import finish_audio
    from hfssl.cli.audio.probes import AudioProbeArguments, audio_evaluators
    from hfssl.cli.modality import build_method
    from hfssl.data.audio.views import AudioViewArguments, AudioViews

    short = {"output_dir": "outputs/simclr_audio", "per_device_train_batch_size": 128, "max_steps": 300}
    defaults = {**short, "pooling": "cls", **DEFAULTS}
    parser = RecipeParser(
        SpectrogramEncoderArguments, AudioDataArguments, AudioViewArguments, SimclrPreTrainingConfig,
        AudioProbeArguments, SSLTrainingArguments, description=__doc__, defaults=defaults,
        unused=("max_tokens", "max_seconds", "min_seconds", "batch_seconds"),
    )  # fmt: skip
    recipe, data_args, view_args, config, probe_args, args = parser.parse()
    data = AudioData(data_args, args.claim_output_dir())
    model = build_method(SimclrForPreTraining, recipe, config, data, args, parser.given)
    processor = make_processor(recipe, model)
    views = AudioViews(model.encoder.config, view_args, processor)
    stream = data.stream_of_views(args, views)
    evaluators = audio_evaluators(model, data, stream, processor, probe_args, args, views)
    trainer = SSLTrainer(
        model, args, stream, evaluators=evaluators, settings=data.settings | views.settings, held_out=data.held_out,
        processing_class=processor,
    )  # fmt: skip
    trainer.train()
    finish_audio(trainer, data, recipe.base_model, views)


@command
def main():
    # which flags there are depends on it
    (audio if function_word(sys.argv[1:]) == "audio" else image)()


if __name__ == "__main__":
    main()
