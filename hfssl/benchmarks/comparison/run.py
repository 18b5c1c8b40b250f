"""Trains and measures the cells of a comparison that are missing, each in a process of its own, and reports."""

import logging
import multiprocessing
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...data.image.decode import DamagedImage, image_header
from ...data.labelled import LazySamples
from ...data.sources import open_source
from ...errors import UserError
from ...evaluation.results import command_line, commit, versions, write_json
from ...functional import keyed
from ...functional.keyed import Use
from ...machine import use_all_cores
from ..vision import require_lightly
from .plan import BASELINES, Cell, Comparison, cell_path, read_cell


logger = logging.getLogger(__name__)


def run_comparison(arguments: Comparison) -> str:
    """Run the cells that are missing, and return the table of those that are there.

    Raises:
        UserError: if a cell stops with one, its process is killed, or what lies in the folder was made otherwise.
    """
    from .report import report

    if arguments.table:
        return report(arguments)
    if arguments.against == "lightly" and any(cell.side == "lightly" for cell in arguments.cells):
        require_lightly()
    if arguments.cell is not None:
        if read_cell(arguments, arguments.one_cell) is None:
            run_cell(arguments, arguments.one_cell)
        return f"{cell_path(arguments, arguments.one_cell)}: done. The table of all that are: `--table`."
    prepare_images(arguments)
    for cell in arguments.cells:
        if read_cell(arguments, cell) is None:
            _run_in_a_process(arguments, cell)
    return report(arguments)


def _run_in_a_process(arguments: Comparison, cell: Cell) -> None:
    context = multiprocessing.get_context("spawn")  # a fork would inherit threads and memory
    connection, other = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(other, arguments, cell, logger.getEffectiveLevel()))
    process.start()
    other.close()
    try:
        error = connection.recv()
        process.join()
    except EOFError:
        process.join()
        raise UserError(
            f"The process of {cell.name} ended with exit code {process.exitcode}. If it was killed for its memory, "
            "pass a smaller `--batch_size` or `--encoder`; the same command goes on with this cell."
        ) from None
    finally:
        process.kill()
        connection.close()
    if error is not None:
        raise error


def _work(connection: Any, arguments: Comparison, cell: Cell, level: int) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("hfssl").setLevel(level)
    error = None
    try:
        run_cell(arguments, cell)
    except Exception as raised:  # it is the other process that says it
        error = raised if isinstance(raised, UserError) else RuntimeError(f"{cell.name}: {raised!r}")
    connection.send(error)


def prepare_images(arguments: Comparison) -> Path:
    """The images to train on as files of one folder, written by whoever comes first."""
    folder = Path(arguments.output_dir) / "images"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    source = open_source(arguments.dataset, modality="image", split=arguments.split)
    if source.num_rows < arguments.batch_size:
        raise UserError(
            f"{source.description} has {source.num_rows} images, fewer than `--batch_size {arguments.batch_size}`."
        )
    rows = np.sort(keyed.permutation(source.num_rows, Use.BENCHMARK_IMAGES)[: arguments.max_images])
    aside = Path(tempfile.mkdtemp(prefix=".images-", dir=folder.parent))
    for row, image in zip(rows.tolist(), LazySamples(source, rows), strict=True):
        try:
            extension = image_header(image).format.lower()
        except DamagedImage:
            continue
        (aside / f"{row:07d}.{extension}").write_bytes(image)
    try:
        aside.rename(folder)
    except OSError:  # a cell that began at the same time has written the same
        if not folder.is_dir():
            raise
        shutil.rmtree(aside)
    return folder


def run_cell(arguments: Comparison, cell: Cell) -> None:
    """Train and measure, then write the encoder and after it the record."""
    from .cells import measure_baselines, train_cell

    use_all_cores(arguments.cpu_threads)
    images = prepare_images(arguments)
    record = measure_baselines(arguments, images) if cell.method == BASELINES else train_cell(arguments, cell, images)
    about = {"method": cell.method, "side": cell.side, "seed": cell.seed}
    record = about | record | {
        "threads": torch.get_num_threads(), "command": command_line(), "commit": commit(), "versions": versions(),
        "protocol": arguments.protocol(cell.method),
    }  # fmt: skip
    if cell.side == "lightly":
        record["versions"] = record["versions"] | {"lightly": metadata.version("lightly")}
    write_json(cell_path(arguments, cell), record)
