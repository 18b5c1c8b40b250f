"""What the end of every run has in common: the last measurement, the table, what lies where, what to try next."""

from typing import Any

from ..evaluation.evaluator import Evaluator
from ..evaluation.facts import write_facts
from ..evaluation.results import Result
from ..training.trainer import SSLTrainer


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
    trainer: SSLTrainer, *, facts: dict[str, Any], told: tuple[str, ...], commands: tuple[str, ...], **card: Any
) -> None:
    """Write the result folder and what it remembers, then say what is in it.

    Args:
        trainer ([`SSLTrainer`]):
            The run.
        facts (`dict[str, Any]`):
            See [`~hfssl.evaluation.facts.write_facts`].
        told (`tuple[str, ...]`):
            What was found, in words.
        commands (`tuple[str, ...]`):
            What to try next; `{folder}` stands for the result.
        card (`dict`):
            Of [`~hfssl.training.trainer.SSLTrainer.finish`].
    """
    folder = trainer.finish(**card)
    if not trainer.is_world_process_zero():
        return
    write_facts(folder, method=method_name(trainer), **facts)
    say = trainer.accelerator.print
    for text in told:
        say(text)
    say(
        f"\nResult: {folder} (loads with plain transformers; the card is {folder}/README.md, the curve "
        f"{folder}/assets/loss.png)\nNext:"
    )
    for command in commands:
        say("  " + command.format(folder=folder))


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
