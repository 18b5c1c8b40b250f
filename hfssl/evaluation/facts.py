"""What a result folder remembers of its run (`hfssl.json`), so that who evaluates it need not be told again."""

import json
from pathlib import Path
from typing import Any


FACTS = "hfssl.json"


def write_facts(folder: str | Path, **facts: Any) -> None:
    """Keep facts such as `method`, `modality`, `dataset`, `pooling` and `image_size` beside a model."""
    (Path(folder) / FACTS).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def given_name(source: str | Path) -> str:
    """What an encoder is called in messages: as it was given, also where it is loaded from a folder made of that."""
    return read_facts(source).get("given") or str(source)


def read_facts(folder: str | Path) -> dict[str, Any]:
    """The facts that a folder remembers; none for a Hub id, a folder without them, or a damaged file."""
    try:
        facts = json.loads((Path(folder) / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
