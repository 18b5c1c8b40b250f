"""`report.html` of a result folder: one page, made from what lies in the folder."""

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.bias import is_bias
from ..evaluation.verdict import LEARNING, has_ended
from ..machine import process_state
from .blocks import Section
from .card import paper_url
from .record import Record, read_record, write_whole
from .sections import SECTIONS, last_verdict
from .words import size_in_words


if TYPE_CHECKING:
    from jinja2 import Template

logger = logging.getLogger(__name__)

REPORT = "report.html"


def write_report(folder: str | Path) -> Path:
    """Write the report of a result folder into it, and return its path.

    Raises:
        UserError: for a folder that has nothing to report on.
    """
    return write_whole(Path(folder) / REPORT, render(read_record(folder)))


def report_safely(folder: str | Path) -> Path | None:
    """[`write_report`] by the main process, at the end of what it must not take down: what goes wrong is logged."""
    if not process_state().is_main_process:
        return None
    try:
        return write_report(folder)
    except Exception as error:
        logger.warning(
            "There is no report of %s (%s: %s). The result is whole; `python recipes/report.py %s` tries it again.",
            folder, type(error).__name__, error, folder,
        )  # fmt: skip
        return None


def render(record: Record) -> str:
    """The page of one folder."""
    verdict = last_verdict(record)
    badge = None
    if verdict is not None:
        said = verdict["health_verdict"]
        badge = (f"Health: {said}", "good" if said == LEARNING else "bad" if has_ended(said) else "")
    lead = _lead(record)
    if record.missing:
        lead.append("Not all that belongs here is there: the last section says what is missing.")
    return page(record.name, lead, sections_of(record), badge)


def page(
    title: str, lead: Sequence[str], sections: Sequence[Section], badge: tuple[str, str] | None = None
) -> str:  # fmt: skip
    """A page of sections.

    Args:
        title (`str`), lead (`Sequence[str]`):
            Its heading, and paragraphs below it.
        sections (`Sequence[Section]`):
            What it tells.
        badge (`tuple[str, str]`, *optional*):
            The verdict, and whether it is `"good"` or `"bad"`.
    """
    return _template().render(title=title, lead=lead, sections=sections, badge=badge)


def sections_of(record: Record) -> list[Section]:
    """The sections of a report. One that cannot be made says so in its place, and the others are there."""
    found = []
    for make in SECTIONS:
        try:
            section = make(record)
        except Exception as error:
            logger.warning("The section %r of the report cannot be made.", make.__name__, exc_info=True)
            record.missing.append(f"The section on {make.__name__}: {type(error).__name__}.")
            continue
        found += section if isinstance(section, list) else [] if section is None else [section]
    return found


@cache
def _template() -> "Template":
    from jinja2 import Environment, PackageLoader

    loader = PackageLoader("hfssl", "report")
    return Environment(loader=loader, autoescape=True, trim_blocks=True).get_template("page.html.jinja")


def _lead(record: Record) -> list[str]:
    run: dict[str, Any] = record.run
    if "title" in run:
        origin = f"further from {run['base_model']} " if run["base_model"] else ""
        encoder = f"A {' and a '.join(run['architecture'])} ({size_in_words(run['parameters'])} parameters)"
        return [
            f"{encoder}, pre-trained {origin}by {run['title']}: {run['paper']['title']} ({paper_url(run['paper'])})."
        ]
    if run:
        return ["A run of pre-training, as far as its folder tells of it."]
    measured = [*record.results, *record.biases]
    models = dict.fromkeys(each.model for each in measured)
    tasks = dict.fromkeys(each.hyperparameters["data"] if is_bias(each) else each.task for each in measured)
    return [f"What was measured of {', '.join(models)} on {', '.join(tasks)}."] if models else []
