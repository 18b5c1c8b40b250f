"""Causal language modelling: from text without labels to a GPT that plain transformers loads and that writes.

accelerate launch recipes/clm.py                                        embedded corpus, minutes on a laptop
accelerate launch recipes/clm.py --dataset my_texts/ --encoder llama-small --max_length 512 --max_steps 20000
accelerate launch recipes/clm.py --dataset my_texts/ --encoder org/model --output_dir outputs/mine   # continue
accelerate launch recipes/clm.py --config recipes/configs/clm_gpt2.yaml
torchrun --nproc_per_node 2 recipes/clm.py                              several processes

The same command again continues a run that was stopped. Measured results: recipes/README.md.
"""

from dataclasses import dataclass

from hfssl.errors import explained


@dataclass
class Encoder:
    r"""
    > Encoder

    Args:
        encoder (`str`, *optional*, defaults to `"gpt2-mini"`):
            gpt2- or llama- tiny, mini, small or base from scratch (depth and width of the BERT of that name); a config
            file; or a Hub id or folder to continue from.
        attention (`str`, *optional*, defaults to `"auto"`):
            auto, eager, sdpa, flash_attention_2 or flex_attention.
    """

    encoder: str = "gpt2-mini"
    attention: str = "auto"


@explained
def main():
    from hfssl import ClmPreTrainingConfig, RecipeParser, SSLTrainer, SSLTrainingArguments
    from hfssl.data.text_data import TextData, TextDataArguments
    from hfssl.encoders import build_clm, is_checkpoint
    from hfssl.evaluation.next_tokens import NextTokenEvaluator
    from hfssl.report import finish_clm

    adam = {"weight_decay": 0.1, "adam_beta2": 0.95, "adam_epsilon": 1e-8}  # of GPT-3 and nanoGPT
    defaults = {"output_dir": "outputs/clm", "max_steps": 400, **adam}
    parser = RecipeParser(
        Encoder, TextDataArguments, ClmPreTrainingConfig, SSLTrainingArguments, description=__doc__, defaults=defaults
    )
    recipe, data_args, config, args = parser.parse()
    checkpoint = args.claim_output_dir()
    base_model = recipe.encoder if is_checkpoint(recipe.encoder) else None
    data = TextData(data_args, base_model, checkpoint, causal=True)
    data.set_max_steps(args)
    model = build_clm(recipe, config, data, args)
    evaluator = NextTokenEvaluator(
        data.held_out_of, data.tokenizer, max_length=data_args.max_length, packing=data_args.packing,
        training_texts=data.training_sample(), rank=args.process_index, world_size=args.world_size,
    )  # fmt: skip
    trainer = SSLTrainer(
        model, args, data.stream(args), evaluators=[evaluator], settings=data.settings, held_out=data.held_out,
        processing_class=data.tokenizer,
    )  # fmt: skip
    trainer.train()
    finish_clm(trainer, evaluator, data, base_model=base_model)


if __name__ == "__main__":
    main()
