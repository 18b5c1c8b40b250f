"""The end of a run: what was measured, what it looks like, where it lies, what to try next."""

import torch

from .data.text_data import TextData
from .evaluation.masked_tokens import MaskedTokenEvaluator, fill_mask_examples
from .evaluation.results import Result
from .trainer import SSLTrainer


def finish_mlm(
    trainer: SSLTrainer, evaluator: MaskedTokenEvaluator, data: TextData, base_model: str | None = None
) -> None:
    """Measure the trained model beside its start and the unigram baseline, write the result folder, and say it all."""
    measured = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    if not measured or measured[-1]["step"] != trainer.state.global_step:
        trainer.evaluate()
        measured.append(trainer.state.log_history[-1])
    figures = [
        {name: entry[f"eval_{name}"] for name in ("loss", "accuracy", "pseudo_perplexity")} for entry in measured
    ]
    if not trainer.is_world_process_zero():
        trainer.finish()
        return
    before = {"before": figures[0]} if measured[0]["step"] == 0 else {}
    results = evaluator.results(figures[-1], str(trainer.args.output_dir), **before)
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    with torch.no_grad():
        examples = fill_mask_examples(model, data.tokenizer, data.held_out)
    name = trainer.args.hub_model_id or trainer.args.output_dir
    a = data.arguments
    folder = trainer.finish(
        results=results,
        examples=examples,
        data=data.source.description,
        base_model=base_model,
        pipeline_tag="fill-mask",
        usage=f'from transformers import AutoModel, AutoTokenizer, pipeline\n\nencoder = AutoModel.from_pretrained("{name}")'
        f"  # last_hidden_state: (batch_size, sequence_length, {model.config.encoder_config.hidden_size})\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\nfill = pipeline("fill-mask", "{name}")',
    )
    say = trainer.accelerator.print
    say("\n" + before_and_after(results, len(data.held_out)))
    if examples:
        say("\nOn held-out text:")
    for example in examples:
        said = ", ".join(f"{token} {probability:.2f}" for token, probability in example["predictions"])
        say(f"  {example['text']}\n    right: {example['answer']} · the model: {said}")
    say(
        f"\nResult: {folder} (loads with plain transformers; the card is {folder}/README.md, the curve {folder}/assets/loss.png)\n"
        "Next:\n"
        f"  python -c \"from transformers import pipeline; print(pipeline('fill-mask', '{folder}')('This is a "
        f"{data.tokenizer.mask_token}.')[0])\"\n"
        f"  accelerate launch recipes/mlm.py --dataset {a.dataset or 'my_texts/'} --encoder {folder} --output_dir outputs/mlm-2\n"
        f"  accelerate launch recipes/glue.py --encoder {folder} --task cola"
    )


def before_and_after(results: list[Result], num_texts: int) -> str:
    """A small table: each metric of the model, before training and of the unigram baseline."""
    columns = {"this model": [r.value for r in results]}
    for name in ("before", "unigram"):
        if name in results[0].baselines:
            columns[name] = [r.baselines[name] for r in results]
    head = f"Held-out masked tokens ({results[0].num_eval:,} in {num_texts:,} texts)"
    width = max(len(head), 24)
    lines = [head.ljust(width) + "".join(name.rjust(14) for name in columns)]
    for i, result in enumerate(results):
        lines.append(f"  {result.metric}".ljust(width) + "".join(f"{values[i]:14.4f}" for values in columns.values()))
    return "\n".join(lines)
