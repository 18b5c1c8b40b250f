"""How far something is that takes long: a bar on a terminal, a line every half minute where there is none."""

import logging
import sys
import time

from tqdm.auto import tqdm

from ..machine import process_state


logger = logging.getLogger(__name__)


class Progress:
    r"""
    Progress of the main process.

    Args:
        total (`int`):
            Of what is counted.
        title (`str`):
            What is done.
        unit (`str`, *optional*, defaults to `" rows"`):
            What is counted.
    """

    SECONDS_BETWEEN_LINES = 30.0

    def __init__(self, total: int, title: str, unit: str = " rows"):
        self.total, self.title, self.unit, self.done = total, title, unit, 0
        is_main = process_state().is_main_process
        self.says_lines = is_main and not sys.stderr.isatty()
        self.bar = tqdm(
            total=total, desc=title, unit=unit, leave=False, disable=None if is_main and not self.says_lines else True
        )
        self.begin = self.last_line = time.monotonic()

    def update(self, number: int = 1) -> None:
        """So many more are done."""
        self.done += number
        self.bar.update(number)
        now = time.monotonic()
        if self.says_lines and now - self.last_line > self.SECONDS_BETWEEN_LINES and self.done < self.total:
            self.last_line = now
            left = (now - self.begin) / max(self.done, 1) * (self.total - self.done)
            done, total = f"{self.done:,}", f"{self.total:,}"
            logger.info("%s: %s of %s%s, %s left", self.title, done, total, self.unit, tqdm.format_interval(left))

    def close(self) -> None:
        self.bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error) -> None:
        self.close()
