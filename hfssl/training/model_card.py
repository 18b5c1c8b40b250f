"""The model card: how a model was made, from what the run recorded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..evaluation.results import Result, commit, versions
from ..evaluation.verdict import health_table
from .record import RunRecord


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
    for field in ("encoder_config", "model_type", "architectures", "transformers_version", "dtype"):
        config.pop(field, None)
    own = set(type(model.config).__annotations__)
    facts["Method's settings"] = ", ".join(f"{k}={v}" for k, v in config.items() if k in own)
    sections = ""
    if results:
        sections += "## What was measured\n\n" + _table(results) + "\n\n"
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
    usage = usage or f'from transformers import AutoModel\n\nmodel = AutoModel.from_pretrained("{name}")'
    path.write_text(
        _CARD.format(
            tag=model.config.model_type.removeprefix("hfssl_"),
            pipeline=f"pipeline_tag: {pipeline_tag}\n" if pipeline_tag else "",
            base_model=f"base_model: {base_model}\n" if base_model else "",
            name=name,
            architecture=type(model.encoder).__name__,
            parameters=model.encoder.num_parameters() / 1e6,
            origin=f"further from `{base_model}` " if base_model else "",
            paper_title=model.paper["title"],
            paper_url=model.paper.get("url") or f"https://huggingface.co/papers/{model.paper['id']}",
            usage=usage.format(name=name),
            sections=sections,
            facts="\n".join(f"| {key} | {value} |" for key, value in facts.items() if value != ""),
            command=run.command,
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
    return f"{run.counts['tokens']:,} {run.unit} in {run.step:,} steps" if run.counts else ""


def _passes(run: RunRecord) -> str:
    return ", ".join(f"{name} {number:.2f}".lstrip() for name, number in run.passes.items())


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
        lines.append("| " + " | ".join([protocol, result.task, result.metric, *figures]) + " |")
    return "\n".join(lines)


def plot_history(history: list[dict[str, Any]], path: Path, contrasted: tuple[int, int] | None = None) -> None:
    """Training and held-out loss over the steps of a run, as a picture.

    Args:
        history (`list[dict[str, Any]]`):
            The log of the run.
        path (`Path`):
            The picture.
        contrasted (`tuple[int, int]`, *optional*):
            Images that are contrasted at once in training and of those held out, where a loss depends on it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    labels = ["training", "held out"]
    if contrasted is not None:
        labels = [f"{label} ({count:,} images at once)" for label, count in zip(labels, contrasted, strict=True)]
    for key, label, style in zip(("loss", "eval_loss"), labels, ("-", "o-"), strict=True):
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4, linewidth=1)
    axes.set(xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
