"""CPC: from recordings without labels to an encoder that never looks ahead, by predicting what comes next.

accelerate launch recipes/cpc.py                                   embedded speech, minutes on a laptop
accelerate launch recipes/cpc.py --dataset my_recordings/ --encoder cpc-base --max_steps 20000
accelerate launch recipes/cpc.py --dataset my_recordings/ --probe_dataset my_labelled_recordings/
accelerate launch recipes/cpc.py --config recipes/configs/cpc_librispeech.yaml
torchrun --nproc_per_node 2 recipes/cpc.py                              several processes, one batch

transformers has no class for this encoder: the result has its weights and settings, and its card the lines that load
them. The same command again continues a run that was stopped. Measured results: recipes/README.md.
"""

from hfssl.cli.command import command


@command
def main():
    from hfssl import CpcForPreTraining, CpcPreTrainingConfig, RecipeParser, SSLTrainer, SSLTrainingArguments
    from hfssl.cli.audio.data import AudioData, AudioDataArguments
    from hfssl.cli.audio.encoders import AudioEncoderArguments, make_processor
    from hfssl.cli.audio.finish import finish_audio
    from hfssl.cli.audio.probes import AudioProbeArguments, audio_evaluators
    from hfssl.cli.modality import build_method

    adam = {"weight_decay": 0.01, "adam_beta2": 0.98, "adam_epsilon": 1e-6, "lr_scheduler_type": "linear"}
    defaults = {"output_dir": "outputs/cpc", "encoder": "cpc-mini", "max_steps": 400, **adam}
    parser = RecipeParser(
        AudioEncoderArguments, AudioDataArguments, CpcPreTrainingConfig, AudioProbeArguments, SSLTrainingArguments,
        description=__doc__, defaults=defaults,
        unused=("max_tokens", "per_device_train_batch_size", "contrastive_batch_size"),
    )  # fmt: skip
    recipe, data_args, config, probe_args, args = parser.parse()
    checkpoint = args.claim_output_dir()
    data = AudioData(data_args, checkpoint)
    model = build_method(CpcForPreTraining, recipe, config, data, args, parser.given)
    processor = make_processor(recipe, model)
    stream = data.stream(args, model, processor)
    evaluators = audio_evaluators(model, data, stream, processor, probe_args, args)
    trainer = SSLTrainer(
        model, args, stream, evaluators=evaluators, settings=data.settings, held_out=data.held_out,
        processing_class=processor,
    )  # fmt: skip
    trainer.train()
    finish_audio(trainer, data, recipe.base_model)


if __name__ == "__main__":
    main()
