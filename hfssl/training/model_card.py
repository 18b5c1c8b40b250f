"""The model card: how a model was made, from what the run recorded."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.results import Result, commit, versions
from ..evaluation.usefulness import usefulness_line
from ..evaluation.verdict import health_table
from ..machine import fit_to_leave
from .record import RunRecord


if TYPE_CHECKING:
    from matplotlib.figure import Figure


# What sets figures of one protocol apart.
_VARIANTS = ("k", "shots")

_CARD = """\
---
library_name: transformers
tags:
- hfssl
- {tag}
{pipeline}{base_model}---

# {name}

A `{architecture}` ({parameters:.1f} M parameters) pre-trained {origin}with [{paper_title}]({paper_url})
by [hfssl](https://github.com/hfssl/hfssl). It loads in plain `transformers`:

```python
{usage}
```

{sections}## How it was made

| | |
|---|---|
{facts}

```bash
{command}
```

![Loss during the run](assets/loss.png)

The full pre-training model lies in `pretraining/`; with `hfssl` installed it continues from there:
`AutoModelForPreTraining.from_pretrained("{name}", subfolder="pretraining")` after `import hfssl`.

Versions: {versions}.

## Citation

```bibtex
{citation}
```
"""


def write_card(
    path: Path,
    run: RunRecord,
    *,
    results: list[Result] = (),
    examples: list[dict[str, Any]] = (),
    data: str | None = None,
    base_model: str | None = None,
    usage: str | None = None,
    pipeline_tag: str | None = None,
    pictures: Sequence[tuple[Path, str]] = (),
) -> None:
    """Write `README.md` of a result folder.

    Args:
        path (`Path`):
            Where to.
        run ([`RunRecord`]):
            What is told.
        results (`list[Result]`, *optional*):
            What was measured.
        examples (`list[dict]`, *optional*):
            From [`~hfssl.evaluation.masked_tokens.fill_mask_examples`] or
            [`~hfssl.evaluation.next_tokens.continuations`].
        data (`str`, *optional*):
            What the model was trained on, in words.
        base_model (`str`, *optional*):
            The checkpoint that the run continued.
        usage (`str`, *optional*):
            Python lines that load the model.
        pipeline_tag (`str`, *optional*):
            Task on the Hub, such as fill-mask.
        pictures (`Sequence[tuple[Path, str]]`, *optional*):
            Pictures that lie in `assets/` under the names of these files, with what they show.
    """
    args, model, name = run.args, run.model, run.name
    is_local = base_model is not None and Path(base_model).exists()
    data, base_model, usage = map(fit_to_leave, (data, base_model, usage))
    facts = {
        "Method": type(model).__name__,
        "Data": data or "not recorded",
        "Seen": _seen(run),
        "Passes over the data": _passes(run),
        "Batch": f"{args.global_batch_size} rows ({args.per_device_train_batch_size} a process, "
        f"{args.world_size} process(es), "
        f"{args.gradient_accumulation_steps} accumulation step(s))",
        "Optimizer": f"{getattr(args.optim, 'value', args.optim)}, learning rate {args.learning_rate:g}, "
        f"weight decay {args.weight_decay:g}, "
        f"betas ({args.adam_beta1:g}, {args.adam_beta2:g}), "
        f"{getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)} schedule, "
        f"warm-up {args.warmup_steps:g}",
        "Precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        "Seed": args.seed,
        "Commit of hfssl": commit() or "unknown",
    }  # fmt: skip
    config = model.config.to_dict()
    own = {name for name in type(model.config).__annotations__ if not name.endswith("_config")}
    facts["Method's settings"] = ", ".join(f"{k}={v}" for k, v in config.items() if k in own)
    sections = ""
    if results:
        sections += "## What was measured\n\n" + _table(results) + "\n\n"
        said = usefulness_line(results)
        sections += f"{said}\n\n" if said else ""
    if examples:
        sections += "## What it says\n\nOn held-out text:\n\n"
        for example in examples:
            text, *lines = example_lines(example)
            sections += f"- {text}\n" + "".join(f"  - {line}\n" for line in lines)
        sections += "\n"
    if health := health_table(run.history):
        sections += f"## Health\n\n{health}\n\n![Effective rank and std](assets/health.png)\n\n"
    if pictures:
        shown = "".join(f"{caption}\n\n![{caption}](assets/{picture.name})\n\n" for picture, caption in pictures)
        sections += "## What it looks like\n\n" + shown
    usage = (
        usage or model.loader or f'from transformers import AutoModel\n\nmodel = AutoModel.from_pretrained("{name}")'
    )
    path.write_text(
        _CARD.format(
            tag=model.config.model_type.removeprefix("hfssl_"),
            pipeline=f"pipeline_tag: {pipeline_tag}\n" if pipeline_tag else "",
            # a folder of this machine is no model that the Hub could link to
            base_model=f"base_model: {base_model}\n" if base_model and not is_local else "",
            name=name,
            architecture="` and a `".join(type(encoder).__name__ for encoder in model.encoders.values()),
            parameters=sum(encoder.num_parameters() for encoder in model.encoders.values()) / 1e6,
            origin=f"further from `{base_model}` " if base_model else "",
            paper_title=model.paper["title"],
            paper_url=model.paper.get("url") or f"https://huggingface.co/papers/{model.paper['id']}",
            usage=usage.format(name=name),
            sections=sections,
            facts="\n".join(f"| {key} | {value} |" for key, value in facts.items() if value != ""),
            command=fit_to_leave(run.command),
            versions=", ".join(f"{package} {version}" for package, version in versions().items()),
            citation=model.paper["citation"],
        ),
        encoding="utf-8",
    )


def example_lines(example: dict[str, Any]) -> list[str]:
    """An example in words: the text that the model was given, then what is right and what it says."""
    if "predictions" in example:
        said = ", ".join(f"{token} ({probability:.2f})" for token, probability in example["predictions"])
        return [example["text"], f"right: {example['answer']}; the model, with its probabilities: {said}"]
    said = [("text", "answer"), ("the model, greedy", "greedy"), ("the model, sampled", "sampled")]
    return [f"{_one_line(example['prompt'])} …", *(f"{name}: … {_one_line(example[key])}" for name, key in said)]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _seen(run: RunRecord) -> str:
    return f"{run.counts['units']:,.0f} {run.unit} in {run.step:,} steps" if run.counts else ""


def _passes(run: RunRecord) -> str:
    return ", ".join(f"{fit_to_leave(name)} {number:.2f}".lstrip() for name, number in run.passes.items())


def _table(results: list[Result]) -> str:
    names = list(dict.fromkeys(name for result in results for name in result.baselines))
    head = ["protocol", "task", "metric", "this model", *(name.replace("_", " ") for name in names)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for result in results:
        figures = [
            f"**{result.value:.4g}**",
            *(f"{result.baselines[n]:.4g}" if n in result.baselines else "" for n in names),
        ]
        variant = "".join(f", {name} = {value}" for name, value in result.hyperparameters.items() if name in _VARIANTS)
        protocol = f"{result.protocol} v{result.version}{variant}"
        lines.append("| " + " | ".join([protocol, fit_to_leave(result.task), result.metric, *figures]) + " |")
    return "\n".join(lines)


def plot_history(
    history: list[dict[str, Any]],
    path: Path,
    contrasted: tuple[int, int] | None = None,
    units: dict[str, str] | None = None,
) -> None:
    """Training and held-out loss over the steps of a run, and the terms of the loss by name, as a picture.

    Args:
        path (`Path`):
            The picture.
        history, contrasted, units:
            See [`history_figure`].
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    history_figure(history, contrasted, units).savefig(path, dpi=120)


def history_figure(
    history: list[dict[str, Any]],
    contrasted: tuple[int, int] | None = None,
    units: dict[str, str] | None = None,
) -> "Figure":
    """Only what can be compared shares an axis: terms of one unit, and with them the whole loss if all have that unit;
    training and held out, unless another number of images is contrasted at once in them.

    Args:
        history (`list[dict[str, Any]]`):
            The log of the run.
        contrasted (`tuple[int, int]`, *optional*):
            Images that are contrasted at once in training and of those held out, where a loss depends on it.
        units (`dict[str, str]`, *optional*):
            Unit of each term of the loss by its name: `loss_units` of a method.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    units = units or {}
    panels: dict[str, list[str]] = {"": ["loss"]}
    if len(set(units.values())) == 1:
        panels = {next(iter(units.values())): ["loss"]}
    for name, unit in units.items():
        panels.setdefault(unit, []).append(f"loss_{name}")
    # a held-out loss that is one term of several is drawn under the name of the term
    measured = [entry for entry in history if "eval_loss" in entry]
    repeated = any(all(entry.get(f"eval_loss_{name}") == entry["eval_loss"] for entry in measured) for name in units)
    kinds = {"": "training", "eval_": "held out"}
    if contrasted is not None:
        counts = zip(kinds.items(), contrasted, strict=True)
        kinds = {prefix: f"{kind} ({count:,} images at once)" for (prefix, kind), count in counts}
    axes_of = [(unit, losses, kinds) for unit, losses in panels.items()]
    if contrasted is not None and len(set(contrasted)) > 1:
        axes_of = [(unit, losses, {kind: kinds[kind]}) for unit, losses, _ in axes_of for kind in kinds]
    # terms are not measured on held-out data
    names = set().union(*history)
    seen = [each for each in axes_of if any(prefix + loss in names for loss in each[1] for prefix in each[2])]
    axes_of = seen or axes_of[:1]
    figure = Figure(figsize=(7, 4 * len(axes_of)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (unit, losses, shown) in zip(
        figure.subplots(len(axes_of), squeeze=False, sharex=True)[:, 0], axes_of, strict=True
    ):
        for i, loss in enumerate(losses):
            drawn = {}
            for prefix, kind in shown.items():
                points = [(entry["step"], entry[prefix + loss]) for entry in history if prefix + loss in entry]
                if not points or prefix + loss == "eval_loss" and repeated:
                    continue
                drawn[prefix] = kind
                label = kind if loss == "loss" else f"{loss.removeprefix('loss_')}, {kind}"
                color = f"C{i if units else list(kinds).index(prefix)}"
                # a line through one point is none
                style = "o-" if prefix or len(points) == 1 else "-"
                axes.plot(*zip(*points, strict=True), style, label=label, color=color, markersize=4, linewidth=1)
            for level, label in _chance_lines(history, loss, drawn).items():
                axes.axhline(level, linestyle="--", color=f"C{i}" if units else "grey", linewidth=1, label=label)
        axes.set(xlabel="step", ylabel=f"loss ({unit})" if unit else "loss")
        axes.tick_params(labelbottom=True)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    return figure


def _chance_lines(history: list[dict[str, Any]], loss: str, kinds: dict[str, str]) -> dict[float, str]:
    """The levels of chance of a loss, with what they are called; one where it is the same in training and held out."""
    levels: dict[float, str] = {}
    for prefix, kind in kinds.items():
        found = [entry[f"{prefix}chance_{loss}"] for entry in history if f"{prefix}chance_{loss}" in entry]
        if found:
            name = "chance" if loss == "loss" else f"{loss.removeprefix('loss_')}, chance"
            levels[found[-1]] = name if found[-1] in levels else f"{name}, {kind}"
    return levels
