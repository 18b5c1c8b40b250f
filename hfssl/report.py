"""The end of a run: what was measured, what it looks like, where it lies, what to try next."""

from collections.abc import Callable
from typing import Any

import torch

from .data.text_data import TextData
from .evaluation.masked_tokens import MaskedTokenEvaluator, fill_mask_examples
from .evaluation.next_sentence import NextSentenceEvaluator
from .evaluation.next_tokens import NextTokenEvaluator, continuations
from .evaluation.results import Result
from .evaluation.token_prediction import TokenPredictionEvaluator
from .model_card import example_lines
from .trainer import SSLTrainer


def finish_mlm(
    trainer: SSLTrainer, evaluator: MaskedTokenEvaluator, data: TextData, base_model: str | None = None
) -> None:
    """Measure the trained model beside its start and the unigram baseline, write the result folder, and say it all."""
    name = trainer.args.hub_model_id or trainer.args.output_dir
    hidden_size = trainer.accelerator.unwrap_model(trainer.model).config.encoder_config.hidden_size
    _finish(
        trainer, evaluator, data, base_model, "fill-mask",
        examples=lambda model: fill_mask_examples(model, data.tokenizer, data.held_out),
        usage="from transformers import AutoModel, AutoTokenizer, pipeline\n\n"
        f'encoder = AutoModel.from_pretrained("{name}")'
        f"  # last_hidden_state: (batch_size, sequence_length, {hidden_size})\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\nfill = pipeline("fill-mask", "{name}")',
        commands=(
            "python -c \"from transformers import pipeline; print(pipeline('fill-mask', '{folder}')('This is a "
            f"{data.tokenizer.mask_token}.')[0])\"",
            f"accelerate launch recipes/mlm.py --dataset {data.arguments.dataset or 'my_texts/'} --encoder {{folder}} "
            "--output_dir outputs/mlm-2",
            "accelerate launch recipes/glue.py --encoder {folder} --task cola",
        ),
    )  # fmt: skip


def finish_clm(
    trainer: SSLTrainer, evaluator: NextTokenEvaluator, data: TextData, base_model: str | None = None
) -> None:
    """Measure the trained model beside its start and the unigram baseline, write the result folder, and say it all."""
    name = trainer.args.hub_model_id or trainer.args.output_dir
    longest = data.arguments.max_length
    _finish(
        trainer, evaluator, data, base_model, "text-generation",
        examples=lambda model: continuations(model.encoder, data.tokenizer, data.held_out, max_length=longest),
        usage="from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
        f'generate = pipeline("text-generation", "{name}")',
        commands=(
            "python -c \"from transformers import pipeline; "
            "print(pipeline('text-generation', '{folder}')('This is')[0])\"",
            f"accelerate launch recipes/clm.py --dataset {data.arguments.dataset or 'my_texts/'} --encoder {{folder}} "
            "--output_dir outputs/clm-2",
        ),
    )  # fmt: skip


def _finish(
    trainer: SSLTrainer,
    evaluator: TokenPredictionEvaluator,
    data: TextData,
    base_model: str | None,
    pipeline_tag: str,
    *,
    examples: Callable[[Any], list[dict[str, Any]]],
    usage: str,
    commands: tuple[str, ...],
) -> None:
    measured = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    if not measured or measured[-1]["step"] != trainer.state.global_step:
        trainer.evaluate()
        measured.append(trainer.state.log_history[-1])
    figures = [{name: entry[f"eval_{name}"] for name in evaluator.metrics} for entry in measured]
    if not trainer.is_world_process_zero():
        trainer.finish()
        return
    before = {"before": figures[0]} if measured[0]["step"] == 0 else {}
    results = evaluator.results(figures[-1], str(trainer.args.output_dir), **before)
    pairs = _next_sentence(trainer, measured)
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    with torch.no_grad():
        said = examples(model)
    folder = trainer.finish(
        results=results + pairs, examples=said, data=data.source.description, base_model=base_model,
        pipeline_tag=pipeline_tag, usage=usage,
    )  # fmt: skip
    say = trainer.accelerator.print
    say("\n" + before_and_after(results, len(data.held_out), evaluator.task))
    if before and base_model:
        new = f", with {len(data.new_tokens):,} new words as the means of their pieces" if data.new_tokens else ""
        say(f"  before: the checkpoint as it came ({base_model}){new}")
    if pairs:
        say("\n" + before_and_after(pairs, len(data.held_out), "sentence pairs"))
    if said:
        say("\nOn held-out text:")
    for example in said:
        say("  " + "\n    ".join(example_lines(example)))
    say(
        f"\nResult: {folder} (loads with plain transformers; the card is {folder}/README.md, the curve "
        f"{folder}/assets/loss.png)\nNext:"
    )
    for command in commands:
        say("  " + command.format(folder=folder))


def _next_sentence(trainer: SSLTrainer, measured: list[dict]) -> list[Result]:
    """What was measured of next-sentence prediction, where it was trained."""
    results = []
    for evaluator in trainer.evaluators:
        if isinstance(evaluator, NextSentenceEvaluator):
            figures = [{name: entry[f"eval_{name}"] for name in ("nsp_accuracy", "nsp_loss")} for entry in measured]
            before = {"before": figures[0]} if measured[0]["step"] == 0 else {}
            results += evaluator.results(figures[-1], str(trainer.args.output_dir), **before)
    return results


def before_and_after(results: list[Result], num_texts: int, items: str = "masked tokens") -> str:
    """A small table: each metric of the model, before training and of the baseline that knows no context."""
    columns = {"this model": [r.value for r in results]}
    for name in ("before", "unigram", "majority"):
        if name in results[0].baselines:
            columns[name] = [r.baselines[name] for r in results]
    head = f"Held-out {items} ({results[0].num_eval:,} in {num_texts:,} texts)"
    width = max(len(head), 24)
    lines = [head.ljust(width) + "".join(name.rjust(14) for name in columns)]
    for i, result in enumerate(results):
        lines.append(f"  {result.metric}".ljust(width) + "".join(f"{values[i]:14.4f}" for values in columns.values()))
    return "\n".join(lines)
