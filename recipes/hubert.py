"""HuBERT: from recordings without labels to an encoder that plain transformers loads, by clusters of its frames.

accelerate launch recipes/hubert.py                                     embedded speech, minutes on a laptop
accelerate launch recipes/hubert.py --iterations 2                      units of MFCC, then of the encoder of the first
accelerate launch recipes/hubert.py --dataset my_recordings/ --encoder hubert-small --iterations 2 --max_steps 20000
accelerate launch recipes/hubert.py --dataset my_recordings/ --encoder wavlm-small
accelerate launch recipes/hubert.py --dataset my_recordings/ --unit_encoder facebook/hubert-base-ls960 --unit_layer 9
accelerate launch recipes/hubert.py --config recipes/configs/hubert_librispeech.yaml
torchrun --nproc_per_node 2 recipes/hubert.py                           several processes, one batch

Before the first step a pass over all recordings makes their units, and the log says how they are shared out. The same
command again continues a run that was stopped, also in the middle of that. Measured results: recipes/README.md.
"""

from hfssl.cli.command import command


@command
def main():
    from hfssl import HubertForPreTraining, HubertPreTrainingConfig, RecipeParser, SSLTrainer, SSLTrainingArguments
    from hfssl.cli.audio.data import AudioData, AudioDataArguments
    from hfssl.cli.audio.encoders import AudioEncoderArguments, make_processor
    from hfssl.cli.audio.finish import finish_audio
    from hfssl.cli.audio.iterations import IterationArguments, each_iteration, encoders_begun_with
    from hfssl.cli.audio.probes import AudioProbeArguments, audio_evaluators
    from hfssl.cli.modality import build_method

    adam = {"weight_decay": 0.01, "adam_beta2": 0.98, "adam_epsilon": 1e-6, "lr_scheduler_type": "linear"}
    defaults = {"output_dir": "outputs/hubert", "encoder": "hubert-mini", "max_steps": 250, **adam}
    parser = RecipeParser(
        AudioEncoderArguments, AudioDataArguments, IterationArguments, HubertPreTrainingConfig, AudioProbeArguments,
        SSLTrainingArguments, description=__doc__, defaults=defaults,
        unused=("max_tokens", "per_device_train_batch_size", "unit_features", "contrastive_batch_size"),
    )  # fmt: skip
    for (recipe, data_args, _, config, probe_args, args), unit_encoder, done in each_iteration(parser):
        checkpoint = args.claim_output_dir() if done is None else None
        data = AudioData(data_args, checkpoint)
        model = build_method(HubertForPreTraining, recipe, config, data, args, parser.given)
        if unit_encoder is not None:
            model.take_unit_encoder(unit_encoder)
        processor = make_processor(recipe, model)
        stream = data.stream(args, model, processor)
        evaluators = audio_evaluators(model, data, stream, processor, probe_args, args)
        settings = data.settings | encoders_begun_with(recipe.base_model, unit_encoder)
        trainer = SSLTrainer(
            model, args, stream, evaluators=evaluators, settings=settings, held_out=data.held_out,
            processing_class=processor,
        )  # fmt: skip
        if done is not None:
            done.check(trainer)
            continue
        trainer.train()
        finish_audio(trainer, data, recipe.base_model)


if __name__ == "__main__":
    main()
