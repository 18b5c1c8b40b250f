"""What the end of every run has in common: the last measurement, the table, what lies where, what to try next."""

import dataclasses
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..commands import as_typed, flag_words, recipe_words
from ..data.modality import modality as find_modality
from ..data.seen import SEEN, write_seen
from ..evaluation.evaluator import Evaluator
from ..evaluation.facts import read_facts, write_facts
from ..evaluation.results import Result
from ..evaluation.usefulness import WHEN_WORSE
from ..training.best import BEST
from ..training.trainer import SSLTrainer


# Of a checkpoint that was continued without labels to probe it on.
LABELS_WOULD_SAY = (
    "Whether the checkpoint that was continued got better or worse, labels say: `--probe_dataset` takes them."
)


def method_name(trainer: SSLTrainer) -> str:
    """The name of a run's method, as its recipe has it."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    return model.config.model_type.removeprefix("hfssl_")


def measured_during(trainer: SSLTrainer) -> list[dict[str, Any]]:
    """What the evaluators found during the run, the state at its end included."""
    measured = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    if not measured or measured[-1]["step"] != trainer.state.global_step:
        trainer.evaluate()
        measured.append(trainer.state.log_history[-1])
    return measured


def results_of(trainer: SSLTrainer, evaluator: Evaluator, metrics: tuple[str, ...]) -> list[Result]:
    """The records of an evaluator of the run: at its end, beside the state before training, and chance."""
    measured = measured_during(trainer)
    figures = [{name: entry[f"eval_{name}"] for name in metrics} for entry in measured]
    before = {"before": figures[0]} if measured[0]["step"] == 0 else {}
    if metrics == ("loss",) and "eval_chance_loss" in measured[-1]:
        before["chance"] = {"loss": measured[-1]["eval_chance_loss"]}
    return evaluator.results(figures[-1], str(trainer.args.output_dir), **before)


def write_and_say(
    trainer: SSLTrainer,
    *,
    facts: dict[str, Any],
    told: tuple[str, ...],
    commands: Callable[[Path], Sequence[str]],
    **card: Any,
) -> None:
    """Write the result folder and what it remembers, then say what is in it.

    Args:
        trainer ([`SSLTrainer`]):
            The run.
        facts (`dict[str, Any]`):
            See [`~hfssl.evaluation.facts.write_facts`].
        told (`tuple[str, ...]`):
            What was found, in words.
        commands (`Callable[[Path], Sequence[str]]`):
            What to try next with the result folder: lines that can be copied.
        card (`dict`):
            Of [`~hfssl.training.trainer.SSLTrainer.finish`].
    """
    folder = trainer.finish(**card)
    if not trainer.is_world_process_zero():
        return
    write_facts(folder, method=method_name(trainer), **facts)
    if trainer.stream is not None:
        write_seen(folder, trainer.stream.source, trainer.stream.exclude)
        _tell_best(Path(folder))

    def say(text: str) -> None:
        trainer.accelerator.print(as_typed(text))

    for text in told:
        say(text)
    if "labelled" in facts and facts["labelled"] is None:
        mine = f"my_labelled_{find_modality(facts['modality']).samples}/"
        probe = recipe_command("probe", encoder=folder, dataset=mine)
        say(
            f"\nHow good it is, labels say; some dozens of each class will do: {probe}\n"
            "(class folders, a table beside the files, or a column). recipes/finetune.py makes a classifier of them."
        )
    is_stock = trainer.accelerator.unwrap_model(trainer.model).export_kind == "stock"
    loads = "loads with plain transformers" if is_stock else "its card has the lines that load it"
    say(f"\nResult: {folder} ({loads}; the card is {folder}/README.md, the report {folder}/report.html)\nNext:")
    for command in commands(Path(folder)):
        say("  " + command)


def _tell_best(folder: Path) -> None:
    """Let the best encoder of a run, beside the last, know of its data what the last one knows."""
    best = folder / BEST
    if best.is_dir():
        write_facts(best, **{**read_facts(folder), **read_facts(best)})
        shutil.copyfile(folder / SEEN, best / SEEN)


def recipe_command(recipe: str, **flags: Any) -> str:
    """The command of a recipe, to be copied; flags that are `None` are left out."""
    return shlex.join([*recipe_words(recipe), *flag_words(flags)])


def changed_flags(arguments: Any, leave_out: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a dataclass of flags that are not as they are by default."""
    fields = [field for field in dataclasses.fields(arguments) if field.name not in leave_out]
    values = {field.name: getattr(arguments, field.name) for field in fields}
    return {field.name: values[field.name] for field in fields if values[field.name] != field.default}


def contrasted(trainer: SSLTrainer) -> tuple[int, int] | None:
    """Samples that are compared at once in training, and in the held-out loss; `None` where none are."""
    if not trainer.accelerator.unwrap_model(trainer.model).method.contrasts_batch:
        return None
    return trainer.args.compared_at_once, trainer.evaluators[0].batch_size


def loss_line(trainer: SSLTrainer, result: Result, samples: str, term: str | None = None) -> str:
    """The held-out loss in words, beside the start and what outputs that say nothing would give.

    Args:
        trainer ([`SSLTrainer`]):
            The run.
        result ([`Result`]):
            What was measured.
        samples (`str`):
            What it was measured on, such as images.
        term (`str`, *optional*):
            Of a loss of several terms the one that it is.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    line = f"Held-out loss{f' ({term})' if term else ''} ({result.num_eval:,} {samples}): {result.value:.4f}"
    if "before" in result.baselines:
        line += f", before training {result.baselines['before']:.4f}"
    chance = result.baselines.get("chance")
    if chance is not None:
        line += f", chance {chance:.4f}" + (", which it is not below" if result.value >= chance else "")
    else:
        line += f"; that of {model.method.title} has no level of chance"
    counts = contrasted(trainer)
    if counts is not None:
        in_training, held_out = counts
        queue = getattr(model.config, "queue_size", 0)
        line += f" ({held_out:,} {samples} contrasted at once, in training {in_training:,}"
        line += f"; a queue of {queue:,} beside them)" if queue else ")"
    return line


def next_folder(folder: Path) -> str:
    """Where a run goes that continues the one in `folder`."""
    number = 2
    while folder.with_name(f"{folder.name}-{number}").exists():
        number += 1
    return str(folder.with_name(f"{folder.name}-{number}"))


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


def change_of_loss(results: Sequence[Result]) -> list[str]:
    """A sentence where a checkpoint predicts held-out data worse than before it was trained further."""
    found = [each for each in results if each.metric == "loss" and "before" in each.baselines]
    return [
        f"The checkpoint that was continued got worse on held-out data: loss {each.baselines['before']:.4f} before, "
        f"{each.value:.4f} now. {WHEN_WORSE}"
        for each in found
        if each.value > each.baselines["before"]
    ]
