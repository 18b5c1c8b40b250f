"""`python -m hfssl mlm`, `accelerate launch -m hfssl mlm`: the same as `hfssl mlm`."""

import os
import sys
from pathlib import Path


# `-m` looks for modules in the working directory first: an evaluate.py of the user there, or a package called
# datasets, would be taken for that of the library. A clone that is not installed is found there, and needs it.
if sys.path and sys.path[0] in ("", os.getcwd()) and Path(__file__).parents[1] != Path.cwd():
    del sys.path[0]

from .cli.main import main


if __name__ == "__main__":
    main()
