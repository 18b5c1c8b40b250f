"""Errors that a user can do something about: one sentence, no stack trace."""

import errno
import functools
import logging
import os
import sys
import textwrap
from collections.abc import Callable

from .commands import as_typed


class UserError(ValueError):
    """What was given, what is needed and how to get there. Recipes print it alone and exit with status 1."""


class DataError(UserError):
    """The data cannot be had: one sentence that says what was given, what is needed and how to get there."""


def first_line(error: BaseException) -> str:
    """What an error says, up to the first line break and without a full stop; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".: ")


def brief(error: BaseException) -> str:
    """The reason that an error gives, in one line."""
    # `@strict` hides the sentence behind the name of the check
    words = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
    return textwrap.shorten(words, 300, placeholder=" …").rstrip(".")


class AboveTheBar(logging.Handler):
    """Log lines on lines of their own: a progress bar makes room for each and is drawn again below it."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        try:
            tqdm.write(as_typed(self.format(record)), file=sys.stderr)
        except Exception:
            self.handleError(record)


def explained(main: Callable) -> Callable:
    """Let the `main` of a recipe end with a sentence instead of a stack trace where the user can help."""

    @functools.wraps(main)
    def run(*args, **kwargs):
        from huggingface_hub.errors import StrictDataclassError
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()  # there is one bar, that of the training
        logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[AboveTheBar()])
        logging.captureWarnings(True)
        transformers_logging.disable_default_handler()
        transformers_logging.enable_propagation()
        logging.getLogger("hfssl").setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)
        status = 1
        try:
            return main(*args, **kwargs)
        except UserError as error:
            message = str(error)
        except StrictDataclassError as error:
            message = str(error.__cause__ or error)
        except KeyboardInterrupt:  # before or after the training, which saves first
            message, status = "Interrupted. The same command goes on from the last checkpoint, if there is one.", 130
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            disk = error.filename or "the output folder"
            message = f"No space left on the disk of {disk}. Free some, then run the same command again."
        sys.stdout.flush()
        print(f"error: {as_typed(message)}", file=sys.stderr, flush=True)  # noqa: T201
        # other processes may wait in a collective that this one will never join
        os._exit(status) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else sys.exit(status)

    return run
