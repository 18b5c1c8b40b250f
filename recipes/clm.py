"""Causal language modelling: from text without labels to a GPT that plain transformers loads and that writes.

accelerate launch recipes/clm.py                                        embedded corpus, minutes on a laptop
accelerate launch recipes/clm.py --dataset my_texts/ --encoder llama-small --max_length 512 --max_steps 20000
accelerate launch recipes/clm.py --dataset my_texts/ --encoder org/model --output_dir outputs/mine   # continue
accelerate launch recipes/clm.py --config recipes/configs/clm_gpt2.yaml
torchrun --nproc_per_node 2 recipes/clm.py                              several processes

The same command again continues a run that was stopped. Measured results: recipes/README.md.
"""

from hfssl.cli.command import command


@command
def main():
    from hfssl import ClmForPreTraining, ClmPreTrainingConfig, RecipeParser, SSLTrainer, SSLTrainingArguments
    from hfssl.cli.modality import build_method
    from hfssl.cli.text.data import TextData, TextDataArguments
    from hfssl.cli.text.encoders import CausalEncoderArguments
    from hfssl.cli.text.finish import finish_text
    from hfssl.cli.text.probes import TextProbeArguments
    from hfssl.evaluation.next_tokens import NextTokenEvaluator

    adam = {"weight_decay": 0.1, "adam_beta2": 0.95, "adam_epsilon": 1e-8}  # of GPT-3 and nanoGPT
    defaults = {"output_dir": "outputs/clm", "max_steps": 400, **adam}
    parser = RecipeParser(
        CausalEncoderArguments, TextDataArguments, ClmPreTrainingConfig, TextProbeArguments, SSLTrainingArguments,
        description=__doc__, defaults=defaults, unused=("lowercase", "strip_accents", "contrastive_batch_size"),
    )  # fmt: skip
    recipe, data_args, config, probe_args, args = parser.parse()
    checkpoint = args.claim_output_dir()
    data = TextData(data_args, recipe.base_model, checkpoint, causal=True)
    probes = probe_args.probes(data)
    data.set_max_steps(args)
    model = build_method(ClmForPreTraining, recipe, config, data, args, parser.given)
    evaluator = NextTokenEvaluator(
        data.held_out_of, data.tokenizer, max_length=data_args.max_length, packing=data_args.packing,
        training_texts=data.training_sample(), rank=args.process_index, world_size=args.world_size,
    )  # fmt: skip
    trainer = SSLTrainer(
        model, args, data.stream(args), evaluators=[evaluator], settings=data.settings, held_out=data.held_out,
        processing_class=data.tokenizer,
    )  # fmt: skip
    trainer.train()
    finish_text(trainer, evaluator, data, recipe.base_model, probes)


if __name__ == "__main__":
    main()
