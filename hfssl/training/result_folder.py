"""The result folder of a run: the stock encoder, the whole method beside it, pictures, figures and the card."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..evaluation.results import write_results
from ..evaluation.verdict import plot_health
from .checkpoints import STAGING
from .model_card import plot_history, write_card
from .record import RunRecord


def write_result(
    run: RunRecord,
    output_dir: Path,
    contrasted: tuple[int, int] | None = None,
    **card: Any,
) -> None:
    """Write the stock encoder, the processor, `pretraining/`, pictures, `results.json` and the card into `output_dir`.

    Everything is written aside first and moved when it is complete.

    Args:
        run ([`RunRecord`]):
            The run.
        output_dir (`Path`):
            Where to.
        contrasted (`tuple[int, int]`, *optional*):
            See [`~hfssl.training.model_card.plot_history`].
        card (`dict`, *optional*):
            Of [`~hfssl.training.model_card.write_card`].
    """
    staging = output_dir / STAGING / "result"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    run = replace(run, model=run.model.without_adapters())
    run.model.export_encoder(staging, processor=run.processor)
    run.model.save_pretrained(staging / "pretraining")
    plot_history(run.history, staging / "assets" / "loss.png", contrasted, run.model.loss_units)
    plot_health(run.history, staging / "assets" / "health.png")
    for picture, _ in card.get("pictures", ()):
        for path in (picture, picture.with_suffix(".html")):  # a page with the sound of what it shows
            if path.is_file():
                shutil.copyfile(path, staging / "assets" / path.name)
    write_card(staging / "README.md", run, **card)
    for entry in staging.iterdir():
        target = output_dir / entry.name
        if target.is_dir():
            shutil.rmtree(target)
        entry.replace(target)
    shutil.rmtree(output_dir / STAGING, ignore_errors=True)
    if card.get("results"):
        write_results(output_dir / "results.json", card["results"])
