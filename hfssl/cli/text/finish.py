"""The end of a run on text: figures beside the start and the unigram baseline, examples, the result folder."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch

from ...evaluation.masked_tokens import fill_mask_examples
from ...evaluation.next_sentence import NextSentenceEvaluator
from ...evaluation.next_tokens import continuations
from ...evaluation.text.pictures import CAPTIONS
from ...evaluation.token_prediction import TokenPredictionEvaluator
from ...report.card import example_lines
from ...training.trainer import SSLTrainer
from ..finish import (
    before_and_after,
    change_of_loss,
    changed_flags,
    method_name,
    next_folder,
    recipe_command,
    results_of,
    write_and_say,
)
from .data import TextData
from .probes import TextProbes, probed_folder


# Flags of a run on the same data that the tokenizer of the result answers.
_OF_THE_TOKENIZER = ("tokenizer", "extend_vocab", "vocab_size", "lowercase", "strip_accents")


def finish_text(
    trainer: SSLTrainer,
    evaluator: TokenPredictionEvaluator,
    data: TextData,
    base_model: str | None = None,
    probes: TextProbes | None = None,
) -> None:
    """Measure the trained model beside its start and the unigram baseline, write the result folder, and say it all.

    Args:
        trainer ([`SSLTrainer`]):
            The run.
        evaluator ([`TokenPredictionEvaluator`]):
            Of its `evaluators`, the one whose figures count.
        data ([`TextData`]):
            What it was trained on.
        base_model (`str`, *optional*):
            The checkpoint that it continued.
        probes ([`TextProbes`], *optional*):
            Labelled texts to probe it on.
    """
    results = results_of(trainer, evaluator, evaluator.metrics)
    pairs = []
    for other in trainer.evaluators:
        if isinstance(other, NextSentenceEvaluator):
            pairs += results_of(trainer, other, ("nsp_accuracy", "loss_nsp"))
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    causal, name, examples = model.method.causal, str(trainer.args.hub_model_id or trainer.args.output_dir), []
    if trainer.is_world_process_zero():
        with torch.no_grad():
            if causal:
                longest = data.arguments.max_length
                examples = continuations(model.encoder, data.tokenizer, data.held_out, max_length=longest)
            else:
                examples = fill_mask_examples(model, data.tokenizer, data.held_out)
    told = ["\n" + before_and_after(results, len(data.held_out), evaluator.task)]
    if base_model and "before" in results[0].baselines:
        new = f", with {len(data.new_tokens):,} new words as the means of their pieces" if data.new_tokens else ""
        told.append(f"  before: the checkpoint as it came ({base_model}){new}")
        told += change_of_loss(results)
    if pairs:
        told.append("\n" + before_and_after(pairs, len(data.held_out), "sentence pairs"))
    if examples:
        told.append("\nOn held-out text:")
    told += ["  " + "\n    ".join(example_lines(example)) for example in examples]
    probed = [] if probes is None else probes.table(trainer, base_model)
    shown = [(probed_folder(trainer) / "assets" / file, caption) for file, caption in CAPTIONS.items()]
    write_and_say(
        trainer, results=results + pairs + probed, examples=examples, data=data.source.description,
        base_model=base_model, pictures=[each for each in shown if each[0].is_file()],
        pipeline_tag="text-generation" if causal else "fill-mask",
        usage=_causal_usage(name) if causal else _masked_usage(name, model.config.encoder_config.hidden_size),
        facts={
            "modality": "text", "dataset": data.arguments.dataset, "max_length": data.arguments.max_length,
            "labelled": None if probes is None else probes.named,
        },
        told=tuple(told), commands=lambda folder: _commands(trainer, folder, data, causal, probes),
    )  # fmt: skip


def _masked_usage(name: str, hidden_size: int) -> str:
    return (
        "from transformers import AutoModel, AutoTokenizer, pipeline\n\n"
        f'encoder = AutoModel.from_pretrained("{name}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
        'inputs = tokenizer(["A text.", "Another, longer text."], padding=True, return_tensors="pt")\n'
        'mask = inputs["attention_mask"].unsqueeze(-1)\n'
        "# not `pooler_output`, where there is one: pre-training has no pooler, and its weights are drawn at random\n"
        f"feature = (encoder(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)  # (2, {hidden_size})\n\n"
        f'fill = pipeline("fill-mask", "{name}")'
    )


def _causal_usage(name: str) -> str:
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
        f'generate = pipeline("text-generation", "{name}")'
    )


def _commands(
    trainer: SSLTrainer, folder: Path, data: TextData, causal: bool, probes: TextProbes | None
) -> Sequence[str]:
    """What to do with the result: each line runs as it stands, on the data of the run."""
    method = method_name(trainer)
    prompt = "This is" if causal else f"This is a {data.tokenizer.mask_token}."
    task = "text-generation" if causal else "fill-mask"
    code = (
        f"from transformers import pipeline; print(pipeline({json.dumps(task)}, {json.dumps(str(folder))})"
        f"({json.dumps(prompt)})[0])"
    )
    # the tokenizer comes with the encoder
    same_data = changed_flags(data.arguments, leave_out=_OF_THE_TOKENIZER)
    again = recipe_command(method, encoder=folder, **same_data, output_dir=next_folder(folder))
    commands = [shlex.join(["python", "-c", code]), again]
    if probes is not None:
        commands += [recipe_command(recipe, encoder=folder, **probes.named) for recipe in ("probe", "finetune")]
    return commands if causal else [*commands, recipe_command("glue", encoder=folder, task="cola")]
