"""From pairs to rows and batches: each side by what its own modality has for it, and both or none of a pair."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch

from ...errors import UserError
from ..blocks import take_rows
from ..device import Beside, send
from ..held_out import content_keys
from ..modality import Input
from ..stream import Block, Rows


class Side(Protocol):
    """What [`PairRows`] asks of a side: [`~hfssl.data.image.views.Views`] of one view,
    [`~hfssl.data.caption.captions.CaptionRows`] or [`~hfssl.data.audio.clips.ClipRows`].

    Attributes:
        has_mask (`bool`):
            Whether a batch of it may have an `attention_mask`.
    """

    has_mask: bool

    def rows(self, block: Block) -> Rows:
        """One row of each sample of the block's column of that name, in their order, without those in `bad`. A column
        `<name>_content` says what of a sample is compared, where that is not all of it."""

    def collator(self, device: torch.device | str) -> Callable[[dict[str, Any]], dict[str, torch.Tensor]]:
        """What turns columns of some rows into a batch on `device`."""


# What is read for a side whose name is no modality that stands beside others.
_READ_AS = {"text": "caption"}


def pair_names(pair: str) -> tuple[str, str]:
    """The two sides of `--pair`, such as `"image,text"`.

    Raises:
        UserError: where there are not two different ones.
    """
    names = tuple(name.strip() for name in pair.split(","))
    if len(names) != 2 or names[0] == names[1] or not all(names):
        raise UserError(f"`--pair` takes two modalities with a comma between them, such as image,text, got {pair!r}.")
    return names


def pair_inputs(pair: str, columns: Mapping[str, str | None] | None = None) -> dict[str, Input]:
    """The inputs of pairs, by the names of their two sides: image, text or audio.

    Args:
        pair (`str`):
            See [`pair_names`].
        columns (`Mapping[str, str | None]`, *optional*):
            The column of each side, where it is stated.
    """
    inputs = {name: Input(_READ_AS.get(name, name), (columns or {}).get(name)) for name in pair_names(pair)}
    # what lies in files of its own says where to look for the rest
    return dict(sorted(inputs.items(), key=lambda side: side[0] in _READ_AS))


class PairRows:
    """Turns a block of pairs into rows: a pure function of the block. A pair with one damaged side is left out.

    Args:
        sides (`Mapping[str, Side]`):
            What makes rows of each input, by its name, in the order of the method's two towers.
        with_duplicates (`bool`, *optional*, defaults to `False`):
            Whether a batch says which of its pairs share a side, see [`PairCollator`].
    """

    def __init__(self, sides: Mapping[str, Side], *, with_duplicates: bool = False):
        self.sides, self.with_duplicates = dict(sides), with_duplicates

    def __call__(self, block: Block) -> Rows:
        kept, bad, num_empty = np.arange(len(block.keys)), [], 0
        made: list[tuple[np.ndarray, Rows]] = []
        for name, side in self.sides.items():
            part = Block(
                {name: [block.columns[name][i] for i in kept]}, block.keys[kept], block.key, block.places[kept]
            )
            rows = side.rows(part)
            bad += [(int(kept[i]), reason) for i, reason in rows.bad]
            num_empty += rows.num_empty
            # of the rows that are left, by their places: what is empty is in no list
            there = _index_of(rows.places, part.places)
            made.append((kept[there], rows))
            kept = kept[there]
        columns: dict[str, Any] = {}
        for of_rows, rows in made:
            chosen = np.searchsorted(of_rows, kept)
            for column, values in rows.columns.items():
                columns[column] = take_rows(values, chosen)
        for name in self.sides:
            if f"{name}_content" not in columns:
                columns[f"{name}_content"] = content_keys([block.columns[name][i] for i in kept])
        return Rows(columns, np.ones(len(kept), np.int64), bad, block.places[kept], num_empty=num_empty)

    def collator(self, device: torch.device | str = "cpu", parts: int = 1) -> "PairCollator":
        """What turns the columns of some rows into a batch on `device`, see [`PairCollator`]."""
        return PairCollator(self, device, parts)


def _index_of(places: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Where each of some places, all but the window, stands among others."""
    numbers = {tuple(place): i for i, place in enumerate(among[:, :3].tolist())}
    return np.array([numbers[tuple(place)] for place in places[:, :3].tolist()], np.int64)


class PairCollator:
    """Turns the columns of some rows into a batch: what the collators of the two sides make.

    Where both sides have an `attention_mask`, they are `a_attention_mask` and `b_attention_mask`.

    With `with_duplicates`, `<name>_content` `(batch_size,)`, int64, is equal where pairs have the same content on that
    side: they are no negatives of each other.

    Args:
        rows ([`PairRows`]):
            What makes the columns.
        device (`torch.device` or `str`):
            Where batches go.
        parts (`int`, *optional*, defaults to 1):
            Batches of a step whose pairs are compared with each other. Of several each may be made more than once.

    Attributes:
        num_rows, num_duplicates (`int`):
            Pairs of steps so far, and those of which another pair of this process that it was compared with had the
            same content on a side.
    """

    def __init__(self, rows: PairRows, device: torch.device | str, parts: int = 1):
        self.collators = [side.collator(device) for side in rows.sides.values()]
        both = all(side.has_mask for side in rows.sides.values())
        self.prefixes = ("a_", "b_") if both else ("", "")
        self.beside, self.with_duplicates, self.parts = Beside(torch.device(device)), rows.with_duplicates, parts
        self.num_rows = self.num_duplicates = 0
        self._waiting: list[dict[str, np.ndarray]] = []
        self._counted: int | None = None

    def __call__(self, columns: dict[str, Any]) -> dict[str, torch.Tensor]:
        batch: dict[str, torch.Tensor] = {}
        for prefix, collate in zip(self.prefixes, self.collators, strict=True):
            found = collate(columns)
            if prefix and "attention_mask" in found:
                found[prefix + "attention_mask"] = found.pop("attention_mask")
            twice = batch.keys() & found.keys()
            if twice:
                raise UserError(
                    f"Both sides of the pairs have {', '.join(sorted(twice))}. Choose an encoder for one of them that "
                    "takes something else."
                )
            batch |= found
        content = {name: values for name, values in columns.items() if name.endswith("_content")}
        # what only the verdict looks at is of no step, and no batch of the run
        if "key_of_step" in columns:
            self._count(content, columns["key_of_step"])
        if self.with_duplicates:
            # torch has few operations for integers without a sign: a key keeps its bits
            signed = {name: np.ascontiguousarray(values).view(np.int64) for name, values in content.items()}
            batch |= self.beside(lambda: {name: send(values, self.beside.device) for name, values in signed.items()})
        return batch

    def _count(self, content: dict[str, np.ndarray], step: int) -> None:
        """Look for pairs with a side in common, once all that are compared are there."""
        if self.parts > 1 and step == self._counted:
            return
        self._waiting.append(content)
        if len(self._waiting) < self.parts:
            return
        whole = [np.concatenate([part[name] for part in self._waiting]) for name in content]
        is_double = np.zeros(len(whole[0]), bool)
        for keys in whole:
            _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
            is_double |= counts[inverse] > 1
        self.num_rows, self.num_duplicates = self.num_rows + len(is_double), self.num_duplicates + int(is_double.sum())
        self._waiting, self._counted = [], step
