"""Metrics as `evaluate` modules that load without the Hub.

Each is a folder of its own that `evaluate.load("<folder>")` reads as well. A module has one import per line, because
`evaluate` finds out by regular expression what a module needs.
"""

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import UserError


if TYPE_CHECKING:
    import evaluate

_FOLDER = Path(__file__).parent


def available() -> list[str]:
    """Names that [`load`] takes."""
    return sorted(path.name for path in _FOLDER.iterdir() if (path / f"{path.name}.py").is_file())


def load(name: str) -> "evaluate.Metric":
    """Load a metric by name.

    Example:

    ```python
    >>> hfssl.evaluation.metrics.load("accuracy").compute(predictions=[0, 1, 1, 0], references=[0, 1, 0, 0])
    {'accuracy': 0.75}
    ```
    """
    if name not in available():
        nearest = difflib.get_close_matches(name, available(), n=1)
        hint = f'; did you mean "{nearest[0]}"?' if nearest else "."
        raise UserError(f'There is no metric "{name}"; there are {", ".join(available())}{hint}')
    import evaluate

    # in memory: processes that share a cache folder would write to the same file
    return evaluate.load(str(_FOLDER / name), keep_in_memory=True)
