"""A fine-tuned classifier as a folder that plain transformers loads: weights with label names, processor, card."""

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedModel

from ..machine import fit_to_leave
from .encoder_folder import quiet
from .facts import read_facts, write_facts
from .model_index import index_entry
from .results import Result, versions


logger = logging.getLogger(__name__)


# Of the trainings of an encoder, the one whose model stays. It is fixed before anything is measured: the best one on
# test would have been chosen by looking at test.
KEPT_SEED = 0
_EXAMPLES = {
    "image-classification": "picture.png", "text-classification": "A sentence.", "audio-classification": "sound.wav",
    "automatic-speech-recognition": "sound.wav",
}  # fmt: skip

_CARD = """\
---
{metadata}
---

# {name}

A `{architecture}` ({parameters:.1f} M parameters), fine-tuned from {encoder} by [hfssl](https://github.com/hfssl/hfssl)
{purpose}. It loads in plain `transformers`:

```python
{usage}```

## Figures

{table}

{which}

```bash
{command}
```

Versions: {versions}.
"""


_PIPELINE = """\
from transformers import pipeline

{verb} = pipeline("{task}", "{folder}")
{verb}("{example}")
"""


def save_classifier(folder: Path, model: PreTrainedModel, processor: Any, cell: str) -> None:
    """Write weights and processor, and which training they are of; that of another training is kept aside."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    with quiet():
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    # a classifier of ours around a stock encoder says how to put it together again
    own = {"usage": model.usage()} if hasattr(model, "usage") else {}
    architecture = type(model.encoder if own else model).__name__
    write_facts(temporary, cell=cell, architecture=architecture, parameters=parameters, **own)
    if folder.exists():
        if is_saved(folder, cell):
            shutil.rmtree(folder)
        else:
            # one of them: of many trials each would leave its classifier here
            aside = folder.with_name(f"{folder.name}-before")
            there = " in place of an older one" if aside.exists() else ""
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(folder, aside)
            logger.warning("%s held the classifier of another training: it lies in %s now%s.", folder, aside, there)
    os.replace(temporary, folder)


def is_saved(folder: Path, cell: str) -> bool:
    """Whether a folder holds the classifier of this training."""
    return read_facts(folder).get("cell") == cell and (folder / "config.json").is_file()


def write_classifier_card(folder: Path, results: Sequence[Result], *, encoder: str, task: str) -> None:
    """Write the card of a saved classifier, `README.md` beside its weights.

    Args:
        folder (`Path`):
            Of [`save_classifier`].
        results (`Sequence[Result]`):
            Figures on one set, those of all seeds.
        encoder (`str`):
            Folder or Hub id of what was fine-tuned.
        task (`str`):
            Of transformers' pipelines, such as `"image-classification"`.
    """
    rows = ["| metric | this model | all seeds | from scratch |", "|---|---|---|---|"]
    for result in results:
        kept = result.per_seed[result.seeds.index(KEPT_SEED)]
        every = f"{result.value:.3f}" + (f" ± {result.std:.3f}" if result.std is not None else "")
        scratch = result.baselines.get("random_init")
        rows.append(f"| {result.metric} ({result.split}) | {kept:.3f} | {every} | {_or_dash(scratch)} |")
    first, facts = results[0], read_facts(folder)
    config = AutoConfig.from_pretrained(folder)
    names = list(config.id2label.values())
    is_classifier = task != "automatic-speech-recognition"
    is_local = Path(encoder).exists()
    shown = ", ".join(map(str, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    purpose = f"on {first.task} to tell {len(names)} classes apart: {shown}"
    if not is_classifier:
        purpose = f"on {first.task} to write down what is said, in {config.vocab_size} tokens"
    if config.problem_type == "regression":
        purpose = f"on {first.task} to give a number"
    number = f"{len(first.seeds)} trainings were measured" if len(first.seeds) > 1 else "One training was measured"
    which = (
        f"{number}, on {first.num_eval:,} rows of {first.split} after {first.num_train:,} of train. The weights are "
        f"those of seed {KEPT_SEED}, whatever it scored: the best one would have been chosen by looking at "
        f"{first.split}."
    )
    told = {
        "task": task, "verb": "classify" if is_classifier else "recognise", "folder": fit_to_leave(str(folder)),
        "example": _EXAMPLES[task],
    }  # fmt: skip
    said = {
        "task": task, "usage": facts.get("usage", _PIPELINE).format(**told), "name": folder.resolve().parent.name,
        "architecture": facts["architecture"],
        "parameters": facts["parameters"] / 1e6, "encoder": f"`{fit_to_leave(encoder)}`",
        "metadata": _metadata(folder, results, task, None if is_local else encoder), "purpose": purpose,
        "table": "\n".join(rows), "which": which,
        "command": fit_to_leave(first.command),
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
    }  # fmt: skip
    (folder / "README.md").write_text(_CARD.format(**said), encoding="utf-8")


def _metadata(folder: Path, results: Sequence[Result], task: str, base_model: str | None) -> str:
    """What the Hub reads of the card: the figures are those of the weights that lie there, not means over seeds."""
    from huggingface_hub import ModelCardData

    index = [index_entry(each, task, each.protocol.replace("_", " "), seed=KEPT_SEED) for each in results]
    data = ModelCardData(
        library_name="transformers", pipeline_tag=task, tags=["hfssl"], base_model=base_model,
        model_name=folder.resolve().parent.name, eval_results=index,
    )  # fmt: skip
    return data.to_yaml(line_break="\n")


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
