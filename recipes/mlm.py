"""Masked language modelling: from text without labels to an encoder that plain transformers loads.

accelerate launch recipes/mlm.py                                      embedded corpus, minutes on a laptop
accelerate launch recipes/mlm.py --dataset my_texts/ --encoder bert-small --max_steps 20000
accelerate launch recipes/mlm.py --dataset my_texts/ --encoder org/model        continue a checkpoint
accelerate launch recipes/mlm.py --dataset my_texts/ --encoder org/model --extend_vocab 500     … with new words
accelerate launch recipes/mlm.py --dataset a.txt:0.7,org/b:0.3 --budget_minutes 60              a mixture, for an hour
accelerate launch recipes/mlm.py --next_sentence_objective                      BERT's two losses, on sentence pairs
accelerate launch recipes/mlm.py --config recipes/configs/mlm_base.yaml
torchrun --nproc_per_node 2 recipes/mlm.py                                      several processes

The same command again continues a run that was stopped. Measured results: recipes/README.md.
"""

from hfssl.cli.command import command


@command
def main():
    from hfssl import MlmForPreTraining, MlmPreTrainingConfig, RecipeParser, SSLTrainer, SSLTrainingArguments
    from hfssl.cli.modality import build_method
    from hfssl.cli.text.data import TextData, TextDataArguments
    from hfssl.cli.text.encoders import TextEncoderArguments
    from hfssl.cli.text.finish import finish_text
    from hfssl.cli.text.probes import TextProbeArguments
    from hfssl.data.text.sentence_pairs import require_unpacked
    from hfssl.evaluation.masked_tokens import MaskedTokenEvaluator
    from hfssl.evaluation.next_sentence import NextSentenceEvaluator

    defaults = {"output_dir": "outputs/mlm", "max_steps": 1200}
    parser = RecipeParser(
        TextEncoderArguments, TextDataArguments, MlmPreTrainingConfig, TextProbeArguments, SSLTrainingArguments,
        description=__doc__, defaults=defaults, unused=("contrastive_batch_size",),
    )  # fmt: skip
    recipe, data_args, config, probe_args, args = parser.parse()
    if config["next_sentence_objective"]:
        require_unpacked(data_args, parser.given)
        if "encoder" not in parser.given:
            recipe.encoder = "bert-mini"  # the objective is BERT's
    checkpoint = args.claim_output_dir()
    data = TextData(data_args, recipe.base_model, checkpoint)
    probes = probe_args.probes(data)
    data.set_max_steps(args)
    model = build_method(MlmForPreTraining, recipe, config, data, args, parser.given)
    pairs = model.config.next_sentence_objective
    share = {"max_length": data_args.max_length, "rank": args.process_index, "world_size": args.world_size}
    evaluators = [MaskedTokenEvaluator(
        data.held_out_of, data.tokenizer, packing=data_args.packing, training_texts=data.training_sample(), **share
    )]  # fmt: skip
    if pairs:
        evaluators.append(NextSentenceEvaluator(data.held_out, data.tokenizer, **share))
    trainer = SSLTrainer(
        model, args, data.stream(args, model.config.masking, sentence_pairs=pairs), evaluators=evaluators,
        settings=data.settings, held_out=data.held_out, processing_class=data.tokenizer,
    )  # fmt: skip
    trainer.train()
    finish_text(trainer, evaluators[0], data, recipe.base_model, probes)


if __name__ == "__main__":
    main()
