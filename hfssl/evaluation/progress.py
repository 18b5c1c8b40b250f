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
        then (`int`, *optional*, defaults to 0):
            How many of the same kind come after these, in other bars.
    """

    SECONDS_BETWEEN_LINES = 30.0
    # After which it is known how long it takes, and what is long enough to be said at once.
    ESTIMATED_AFTER, WORTH_SAYING = 3.0, 90.0

    def __init__(self, total: int, title: str, unit: str = " rows", then: int = 0):
        self.total, self.title, self.unit, self.then, self.done = total, title, unit, then, 0
        self.is_estimated = False
        self.is_main = is_main = process_state().is_main_process
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
        if not self.is_estimated and now - self.begin > self.ESTIMATED_AFTER:
            self._estimate(now)
        if self.says_lines and now - self.last_line > self.SECONDS_BETWEEN_LINES and self.done < self.total:
            self.last_line = now
            left = (now - self.begin) / max(self.done, 1) * (self.total - self.done)
            done, total = f"{self.done:,}", f"{self.total:,}"
            logger.info("%s: %s of %s%s, %s left", self.title, done, total, self.unit, tqdm.format_interval(left))

    def _estimate(self, now: float) -> None:
        """Say once how long it takes: where no bar shows it, or more comes than the bar counts."""
        self.is_estimated = True
        a_unit = (now - self.begin) / max(self.done, 1)
        left, after = a_unit * (self.total - self.done), a_unit * self.then
        if left + after < self.WORTH_SAYING or not (self.says_lines or self.is_main and self.then):
            return
        if self.then:
            times = tqdm.format_interval(left), tqdm.format_interval(left + after)
            logger.info("%s takes about %s, with what comes after it %s", self.title, *times)
        else:
            logger.info("%s takes about %s", self.title, tqdm.format_interval(left))
        self.last_line = now

    def close(self) -> None:
        self.bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error) -> None:
        self.close()
