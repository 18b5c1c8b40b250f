"""The model card: how a model was made and what it is good for, from the record of its result folder."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..errors import UserError
from ..evaluation.bias import bias_lines, bias_tables
from ..evaluation.groups import group_lines, group_tables
from ..evaluation.modality import evaluation_modality
from ..evaluation.model_index import index_entry
from ..evaluation.probes import title_of
from ..evaluation.results import Result, versions, write_results
from ..evaluation.usefulness import USEFUL, usefulness, usefulness_lines
from ..evaluation.verdict import health_table
from ..machine import fit_to_leave
from .record import RESULTS, Record, read_record, write_whole
from .words import cost_in_words, in_words, number, plain, seen_in_words, size_in_words


if TYPE_CHECKING:
    from jinja2 import Template

CARD = "README.md"
_MEASURED = "## What was measured"
_TOOLKIT = """\
@software{{hfssl,
  title = {{hfssl: self-supervised pre-training for the Hugging Face ecosystem}},
  author = {{{{The hfssl authors}}}},
  url = {{https://github.com/hfssl/hfssl}},
  version = {{{version}}}
}}"""
_LIMITS = "## Limits and known biases"
_OLD_LIMITS = r"^## Limits\n\n(?:- .*\n)+\n*"
# What is between them follows from the record, and is written anew with it; what a person writes stands outside.
_FROM_HERE, _TO_HERE = "<!-- hfssl writes from here -->", "<!-- to here -->"
# What cards of models are asked for, and what was not measured.
_BIASES_NOT_EVALUATED = "Biases: not evaluated. What the data are biased by, the features may be as well. "
# Of other samples than texts, and of texts.
_HOW_TO_EVALUATE = (
    "`recipes/probe.py --group_column` tells how labels fare by group.",
    "`recipes/bias.py` tests pairs of sentences and associations, `recipes/probe.py --group_column` labels by group.",
)
_NOT_EVALUATED = ("Other data than those named above, damaged or unusual inputs, and attacks: not evaluated.",)


def write_card(path: Path, record: Record) -> None:
    """Write the card of a run.

    Args:
        path (`Path`):
            Where to.
        record ([`~hfssl.report.record.Record`]):
            What is told.
    """
    run, name = record.run, record.name
    told = {kind: dict(found) for kind, found in run["settings"].items()}
    usage = run["usage"] or f'from transformers import AutoModel\n\nmodel = AutoModel.from_pretrained("{name}")'
    lines = [example_lines(example) for example in run["examples"]]
    write_whole(
        path,
        _template().render(
            run=run,
            name=name,
            parameters=size_in_words(run["parameters"]),
            metadata=metadata(record),
            paper_url=paper_url(run["paper"]),
            loads="The lines below load it:" if run["loads"] == "plain" else "It loads in plain `transformers`:",
            usage=usage.format(name=name),
            measured=measured(record),
            examples=[(text, more) for text, *more in lines],
            health=health_table(record.history),
            limits=limits_section(record),
            facts=_facts(record),
            settings=[(key, plain(value)) for found in told.values() for key, value in sorted(found.items())],
            versions=", ".join(f"{package} {version}" for package, version in run["versions"].items()),
            own_citation=_TOOLKIT.format(version=run["versions"].get("hfssl", versions().get("hfssl", ""))),
        ),
    )


def card_of(folder: str | Path) -> Path:
    """The card of a result folder.

    Raises:
        UserError: where there is none.
    """
    path = Path(folder) / CARD
    if not path.is_file():
        raise UserError(
            f"{folder} has no {CARD} to write figures into. `--update_card` is for the result folder of a run: name "
            "it as `--encoder`, or leave the flag out."
        )
    return path


def add_to_card(folder: str | Path, results: Sequence[Result], encoder: str | None = None) -> Path:
    """Let a result folder tell of what was measured later; what else stands in its card stays as it is.

    Args:
        folder (`str` or `Path`):
            Of a run.
        results (`Sequence[Result]`):
            What was measured of its encoder. They join its `results.json`.
        encoder (`str`, *optional*):
            Digest of the weights that were measured, see [`~hfssl.evaluation.encoder_folder.weights_digest`].

    Returns:
        `Path`: the card.
    """
    path = card_of(folder)
    write_results(Path(folder) / RESULTS, [replace(each, encoder=encoder) for each in results])
    record = read_record(folder)
    section, text = measured(record), path.read_text(encoding="utf-8")
    if _MEASURED in text:
        # up to the next heading of its rank
        text = re.sub(rf"^{_MEASURED}\n.*?(?=^## |\Z)", lambda _: section, text, count=1, flags=re.S | re.M)
    else:
        text = re.sub(r"(?=^## )|\Z", lambda _: section, text, count=1, flags=re.M)
    known, between = _known_limits(record), f"{_FROM_HERE}.*?{_TO_HERE}"
    if re.search(between, text, flags=re.S):
        text = re.sub(between, lambda _: known, text, count=1, flags=re.S)
    else:  # a person has taken it out, or an older version wrote the card: its list, a heading, or nothing of it
        places = (_OLD_LIMITS, rf"^{_LIMITS}\n+", r"(?=^## How it was made)|\Z")
        place = next(each for each in places if re.search(each, text, flags=re.M))
        text = re.sub(place, lambda _: limits_section(record), text, count=1, flags=re.M)
    card = ModelCard(text, ignore_metadata_errors=True)
    card.data.model_name = card.data.model_name or record.name
    card.data.eval_results = eval_results(record, card.data.pipeline_tag)
    return write_whole(path, str(card))


def metadata(record: Record) -> str:
    """What the Hub reads of a card, as YAML without its frame."""
    run, known = record.run, [each["id"] for each in record.run["hub_data"]]
    tags = ["hfssl", run["method"], "self-supervised-learning"]
    data = ModelCardData(
        language=run["language"],
        license=run["license"],
        library_name="transformers",
        tags=list(dict.fromkeys(tags)),
        datasets=list(dict.fromkeys(known)) or None,
        # a folder of this machine is no model that the Hub could link to
        base_model=None if run["base_model_is_local"] else run["base_model"],
        pipeline_tag=run["pipeline_tag"],
        model_name=record.name,
        eval_results=eval_results(record, run["pipeline_tag"]),
    )
    return data.to_yaml(line_break="\n")


def eval_results(record: Record, pipeline_tag: str | None) -> list[EvalResult] | None:
    """Figures as the index of a model has them: each with its protocol, seeds and baselines."""
    modality = record.run.get("modality") or record.facts.get("modality")
    hub_data = {each["id"]: each for each in record.run.get("hub_data", [])}
    found = [
        index_entry(each, _task_of(each, pipeline_tag, modality), title_of(each), hub_data.get(each.task))
        for each in record.figures
        if each.value is not None
    ]
    return found or None


def _task_of(result: Result, pipeline_tag: str | None, modality: str | None) -> str:
    """The task of transformers' pipelines that a figure is of."""
    of_labels = result.baselines.get("majority") is not None and result.metric not in ("miou", "pixel_accuracy")
    if of_labels and modality is not None and result.protocol in ("knn", "linear", "few_shot", "finetune", "layers"):
        finetuning = evaluation_modality(modality).finetuning
        if finetuning is not None:
            return finetuning.task
    return pipeline_tag or "feature-extraction"


def measured(record: Record) -> str:
    """The section on what was measured; empty where nothing was."""
    results, run = record.figures, record.run
    if not results:
        return ""
    protocols = dict.fromkeys(f"`{each.protocol}` v{each.version}" for each in results)
    how = (
        f"Protocols: {', '.join(protocols)}; what they fix stands in hfssl, and settings, seeds, command and commit "
        "of each figure in `results.json`."
    )
    if run.get("encoder"):
        # of figures that nobody marked, when they were measured is not known
        marked = sum(each.encoder == run["encoder"] for each in results)
        which = "All" if marked == len(results) else f"{marked} of the {len(results)} figures"
        how += f" {which} are of the weights after step {run['step']:,} (sha256 {run['encoder'][:12]})."
    said = [_cell(fit_to_leave(line)) for line in usefulness_lines(results)]
    return "\n\n".join([_MEASURED, _table(results), *said, how]) + "\n\n"


def limits_section(record: Record) -> str:
    """The section on what the model is not known to be good for, and on what biases were found."""
    return f"{_LIMITS}\n\n{_known_limits(record)}\n\n"


def _known_limits(record: Record) -> str:
    """What stands in it that follows from the record."""
    blocks = ["\n".join(f"- {_cell(fit_to_leave(limit))}" for limit in limits(record))]
    for title, head, rows in [*bias_tables(record.biases), *group_tables(record.results)]:
        table = "\n".join(_rows(head, rows))
        blocks.append(f"<details>\n<summary>{_cell(title)}</summary>\n\n{table}\n\n</details>")
    return "\n\n".join([_FROM_HERE, *blocks, _TO_HERE])


def limits(record: Record) -> list[str]:
    """What the model is not known to be good for, and what tests of bias found."""
    run, found = record.run, []
    of_labels = [each for each in record.results if each.baselines.get("majority") is not None]
    if not of_labels:
        found.append("Use for labels of any kind: not evaluated. `recipes/probe.py --update_card true` does it.")
    for task in dict.fromkeys(each.task for each in of_labels):
        probes = [each for each in of_labels if each.task == task]
        if usefulness(probes)[0] not in ("", USEFUL):
            found.append(f"For the labels of {task} it is no gain: {in_words(probes[0])}.")
    if run.get("seen", {}).get("units") and max(run["passes"].values(), default=1.0) < 1.0:
        found.append("It has not seen all of its data once.")
    if run.get("license") is None:
        found.append("Licence: not stated by who trained it. That of the data may bind what is made of them.")
    biases = [*bias_lines(record.biases), *group_lines(record.results)]
    if not biases:
        biases = [_BIASES_NOT_EVALUATED + _HOW_TO_EVALUATE[run.get("modality") == "text"]]
    return [*found, *biases, *_NOT_EVALUATED]


def _facts(record: Record) -> list[tuple[str, str]]:
    run = record.run
    settings, seen = run["settings"]["run"], run["seen"]
    skipped = {name: seen.get(f"samples_{name}", 0) for name in ("bad", "empty")} if seen else {}
    hub_data = (
        f"{each['id']}, {each.get('config', 'default')}, split {each['split']}, "
        f"revision {each.get('revision', 'unknown')}"
        for each in run["hub_data"]
    )
    changed = [
        f"{name}={plain(settings[name])}" for name in run["changed"] if settings.get(name) is not None
    ]  # fmt: skip
    facts = {
        "Method": run["class"],
        "Data": run["data"] or "not recorded",
        "Data sets of the Hub": "; ".join(hub_data),
        "Seen": seen_in_words(run),
        "Passes over the data": ", ".join(f"{name} {share:.2f}".lstrip() for name, share in run["passes"].items()),
        "Skipped": f"{skipped['bad']:,} damaged, {skipped['empty']:,} empty samples" if skipped else "",
        "Held out": f"{run['left_out']:,} samples, never trained on" if run["left_out"] else "",
        "Batch": f"{run['batch']} rows ({settings['per_device_train_batch_size']} a process, {run['processes']} "
        f"process(es), {settings['gradient_accumulation_steps']} accumulation step(s))",
        "Optimizer": f"{settings['optim']}, learning rate {settings['learning_rate']:g}, "
        f"weight decay {settings['weight_decay']:g}, betas ({settings['adam_beta1']:g}, {settings['adam_beta2']:g}), "
        f"{settings['lr_scheduler_type']} schedule, warm-up {settings['warmup_steps']:g}",
        "Precision": run["precision"],
        "Seed": str(settings["seed"]),
        "Cost": cost_in_words(run) or "not recorded",
        "Commit of hfssl": run["commit"] or "unknown",
        "Method's settings": ", ".join(f"{k}={v}" for k, v in run["settings"]["method"].items()),
        "Settings of the run that are not the defaults": ", ".join(changed),
    }  # fmt: skip
    return [(key, value) for key, value in facts.items() if value]


def paper_url(paper: dict[str, str]) -> str:
    """Where the paper of a method can be read."""
    return paper.get("url") or f"https://huggingface.co/papers/{paper['id']}"


def example_lines(example: dict[str, Any]) -> list[str]:
    """An example in words: the text that the model was given, then what is right and what it says."""
    if "predictions" in example:
        said = ", ".join(f"{token} ({probability:.2f})" for token, probability in example["predictions"])
        return [example["text"], f"right: {example['answer']}; the model, with its probabilities: {said}"]
    said = [("text", "answer"), ("the model, greedy", "greedy"), ("the model, sampled", "sampled")]
    return [f"{_one_line(example['prompt'])} …", *(f"{name}: … {_one_line(example[key])}" for name, key in said)]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _table(results: Sequence[Result]) -> str:
    names = list(dict.fromkeys(name for result in results for name in result.baselines))
    head = ["protocol", "task", "metric", "this model", *(name.replace("_", " ") for name in names), "seeds"]
    rows = []
    for each in results:
        variant = title_of(each)
        protocol = f"{each.protocol} v{each.version}" + (f", {variant}" if variant != each.protocol else "")
        figures = [number(each.baselines.get(name), each.baselines_std.get(name), none="") for name in names]
        value = f"**{number(each.value, each.std)}**"
        rows.append([protocol, fit_to_leave(each.task), each.metric, value, *figures, str(len(each.seeds))])
    return "\n".join(_rows(head, rows))


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return [
        "| " + " | ".join(head) + " |", "|" + "---|" * len(head),
        *("| " + " | ".join(map(_cell, row)) + " |" for row in rows),
    ]  # fmt: skip


def _cell(text: str) -> str:
    """Text that stays in its place in Markdown: one line, no cell of a table, no element of a page."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


@cache
def _template() -> "Template":
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("hfssl", "report"), autoescape=False, trim_blocks=True, keep_trailing_newline=True
    )  # fmt: skip
    environment.filters["cell"] = _cell
    return environment.get_template("card.md.jinja")
