"""The result folder of a run: the stock encoder, the whole method beside it, pictures, records and the card."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME

from ..evaluation.encoder_folder import weights_digest
from ..evaluation.results import Result, write_json, write_results
from ..evaluation.verdict import plot_health
from ..report.card import write_card
from ..report.curves import plot_history
from ..report.record import RESULTS, RUN, Record, record_of_weights
from .checkpoints import STAGING
from .record import RunRecord


def write_result(run: RunRecord, output_dir: Path, results: Sequence[Result] = (), **told: Any) -> None:
    """Write the stock encoder, the processor, `pretraining/`, pictures, records and the card into `output_dir`.

    Everything is written aside first and moved when it is complete, `config.json` last: where it is, all is. The card
    has the figures of later probes, too, where the folder holds these weights already.

    Args:
        run ([`RunRecord`]):
            The run.
        output_dir (`Path`):
            Where to.
        results (`Sequence[Result]`, *optional*):
            What was measured.
        told (`dict`, *optional*):
            Of [`~hfssl.training.record.RunRecord.as_json`].
    """
    staging = output_dir / STAGING / "result"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    run = replace(run, model=run.model.without_adapters())
    run.model.export_encoder(staging, processor=run.processor)
    run.model.save_pretrained(staging / "pretraining")
    plot_history(run.history, staging / "assets" / "loss.png", told.get("contrasted"), run.model.loss_units)
    plot_health(run.history, staging / "assets" / "health.png")
    for picture, _ in told.get("pictures", ()):
        for path in (picture, picture.with_suffix(".html")):  # a page with the sound of what it shows
            if path.is_file():
                shutil.copyfile(path, staging / "assets" / path.name)
    encoder = weights_digest(staging)
    results = [replace(each, encoder=encoder) for each in results]
    record = Record(staging, run.as_json(**told) | {"encoder": encoder}, results)
    write_json(staging / RUN, record.run)
    write_card(staging / "README.md", record)
    (output_dir / CONFIG_NAME).unlink(missing_ok=True)
    for entry in sorted(staging.iterdir(), key=lambda entry: entry.name == CONFIG_NAME):
        target = output_dir / entry.name
        if target.is_dir():
            shutil.rmtree(target)
        entry.replace(target)
    shutil.rmtree(output_dir / STAGING, ignore_errors=True)
    if results:
        write_results(output_dir / RESULTS, results)
    # of the same command, once more: what later probes have found of these weights
    known = record_of_weights(output_dir, record.run)
    if len(known.results) + len(known.biases) > len(results):
        write_card(output_dir / "README.md", known)
