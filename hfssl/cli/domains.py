"""What a data set holds, found by opening it, and how `recipes/pretrain.py` goes about such data.

A folder of `hfssl/cli` whose data can be pre-trained on declares a `DOMAIN` in its `domain.py`; nothing else names it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any

from ..data.held_out import all_samples
from ..data.mixtures import open_mixture
from ..data.modality import Input, Modality, leading_input
from ..data.modality import modality as find_modality
from ..data.sources import Source
from ..errors import DataError, UserError, first_line


# What is trained on where no data are named: the first embedded set of this one.
_WITHOUT_DATA = "image"


@dataclass(frozen=True)
class Choice:
    """A method for some data.

    Args:
        method (`str`):
            Name of its recipe.
        why (`str`):
            The paradigm, and why it fits, in a sentence.
        flags (`dict[str, Any]`, *optional*):
            Of the recipe, which differ from its defaults for such data.
    """

    method: str
    why: str
    flags: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Domain:
    """Data of a kind.

    Args:
        name (`str`):
            Of its folder.
        samples (`str`):
            Several samples, in messages.
        inputs (`dict[str, Input]`):
            What a sample is made of.
        choose (`Callable[[int, bool], Choice]`):
            A method, from the number of samples and whether there is no accelerator.
        modality (`str`):
            Of the encoder that is probed.
        encoder (`str`, *optional*):
            Where in the result folder that lies, where it is not the root.
        labels_flags (`dict[str, str]`, *optional*):
            What flags of `recipes/probe.py` are called in the recipes of its methods; of those that take none, empty.
        why_not (`Callable[[Source], str]`, *optional*):
            Why data that can be opened so are none of this kind all the same; empty where they are.
    """

    name: str
    samples: str
    inputs: Mapping[str, Input]
    choose: Callable[[int, bool], Choice]
    modality: str
    encoder: str = ""
    labels_flags: Mapping[str, str] = field(default_factory=dict)
    why_not: Callable[[Source], str] = lambda source: ""

    @property
    def is_joint(self) -> bool:
        """Whether a sample is made of several: data of which there are such are more than each of their sides."""
        return len(self.inputs) > 1

    def open(self, dataset: str | None, columns: Mapping[str, str | None], **options: Any) -> Source:
        """The data as samples of this kind; `columns` are those that were named, by their flags."""
        inputs = {}
        for name, each in self.inputs.items():
            flag = find_modality(each.modality).column_flag.removeprefix("--")
            inputs[name] = replace(each, column=columns.get(flag))
        return open_mixture(dataset, inputs=inputs, **options)


# Samples that are looked at, of bytes that may be of any kind.
_LOOKED_AT = 5


def why_not_readable(read: Callable[[bytes], Any]) -> Callable[[Source], str]:
    """A `why_not` of samples that are bytes: the reason that `read` gives, where it takes none of some."""

    def why_not(source: Source) -> str:
        reason = "it holds no samples."
        for sample in all_samples(source, _LOOKED_AT):
            try:
                read(sample)
            except ValueError as error:
                reason = f"{first_line(error)}."
            else:
                return ""
        return reason

    return why_not


# Of [`~hfssl.cli.probes.ProbeArguments`].
PROBE_FLAGS = {
    name: f"probe_{name}"
    for name in ("dataset", "dataset_config", "split", "test_split", "label_column", "labels", "split_by")
}


@cache
def domains() -> dict[str, Domain]:
    """All domains by name."""
    package = import_module(__package__)
    folders = [module.name for module in iter_modules(package.__path__) if module.ispkg]
    there = [name for name in folders if find_spec(f"{__package__}.{name}.domain") is not None]
    return {name: import_module(f"{__package__}.{name}.domain").DOMAIN for name in there}


def find_domain(
    dataset: str | None, name: str | None = None, columns: Mapping[str, str | None] | None = None, **options: Any
) -> tuple[Domain, Source, str]:
    """What a data set holds, as its source, and how that was found out.

    Args:
        dataset (`str`, *optional*):
            What the user typed for `--dataset`.
        name (`str`, *optional*):
            The domain, where it is stated.
        columns (`dict[str, str | None]`, *optional*):
            Columns that are named, by their flags, such as `image_column`.
        options (`dict`):
            Of [`~hfssl.data.sources.open_source`], such as `split`.

    Raises:
        UserError: where nothing can be trained on, with what each domain has against it.
    """
    there, columns = domains(), columns or {}
    if name is not None and name not in there:
        raise UserError(f"`--modality` is one of {', '.join(there)}, got {name!r}.")
    if dataset is None and name is None:
        name = _WITHOUT_DATA
    if name is not None:
        source = there[name].open(dataset, columns, **options)
        return there[name], source, "as stated" if dataset is not None else "which come with hfssl"
    embedded = [each for each in there.values() if leading_modality(each).embedded_set(dataset) is not None]
    opened: dict[str, Source] = {}
    problems: dict[str, str] = {}
    for domain in embedded or there.values():
        try:
            source = domain.open(dataset, columns, **options)
        except DataError as error:
            problems[domain.samples] = str(error)
            continue
        problem = domain.why_not(source)
        if problem:
            problems[domain.samples] = problem
        else:
            opened[domain.name] = source
    if not opened:
        said = list(dict.fromkeys(problems.values()))
        told = said[0] if len(said) == 1 else "; ".join(f"as {samples}: {why}" for samples, why in problems.items())
        raise UserError(f"There is nothing to pre-train on: {told}")
    sizes = {each: float(source.piece_bytes.sum()) for each, source in opened.items()}
    chosen = max(opened, key=lambda each: (there[each].is_joint, sizes[each]))
    domain, source = there[chosen], opened[chosen]
    others = [there[each].samples for each in opened if each != chosen]
    how = f"{source.num_rows:,} {domain.samples}"
    if others and domain.is_joint:
        how += f", which are more than {' or '.join(others)} alone"
    elif others:
        how += f", which are more bytes than the {' and '.join(others)} among them"
    return domain, source, f"{how} (`--modality` states another)" if others else how


def leading_modality(domain: Domain) -> Modality:
    """That of the input after which data are opened."""
    return find_modality(domain.inputs[leading_input(domain.inputs)].modality)


def batch_for(num_samples: int, usual: int) -> int | None:
    """Samples a step of few samples, so that one is rarely compared with itself; `None` for the usual ones."""
    fewer = usual
    while fewer > 8 and 4 * fewer > num_samples:
        fewer //= 2
    return None if fewer == usual else fewer
