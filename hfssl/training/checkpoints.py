"""The output folder of a run: who may write to it, and checkpoints that are either whole or not there."""

import ast
import json
import logging
import math
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import UserError


logger = logging.getLogger(__name__)

# Written last into a checkpoint: size and checksum of every file in it, the settings of the run, its number of
# processes and of warm-up steps, and the version of what is in the checkpoint.
MANIFEST = "manifest.json"
# 2: streams have lanes.
VERSION = 2
LOCK = ".hfssl.lock"
# Where checkpoints are written, and where old ones go before they are deleted: neither is ever taken for a checkpoint.
STAGING = ".staging"

_locks: dict[str, Any] = {}  # open lock files, held until the process ends


_reported: set[Path] = set()  # damaged checkpoints that were named


def _release_in_child() -> None:
    # a worker that outlives its killed parent for a second must not keep the folder from the next run
    for lock in _locks.values():
        lock.close()
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)


def claim_output_dir(output_dir: str | Path, resume: str = "auto") -> Path:
    """Make `output_dir` this process's own, before any time is spent on data or model.

    Called by the main process of a run. The claim ends with the process, however it ends.

    Raises:
        UserError: if the folder cannot be written, is in use by another run, or holds something else.
    """
    folder = Path(output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / LOCK, "a+")  # noqa: SIM115 - held open as long as the process lives
    except OSError as error:
        raise UserError(
            f"Cannot write to the output folder {folder}: {error.strerror}. Pass another `--output_dir`."
        ) from None
    try:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass  # no such locks on this system
    except OSError:
        lock.seek(0)
        raise UserError(
            f"The output folder {folder} is in use by another process (pid {lock.read().strip() or 'unknown'}). "
            "Wait for it, or pass another `--output_dir`."
        ) from None
    is_new = (folder / LOCK).stat().st_size == 0
    others = sorted(entry.name for entry in folder.iterdir() if entry.name != LOCK)
    if is_new and others:
        lock.close()
        (folder / LOCK).unlink()
        raise UserError(
            f"The output folder {folder} is not empty ({', '.join(others[:4])}{', …' if len(others) > 4 else ''}) and "
            "holds no run of hfssl. Pass another `--output_dir`."
        )
    has_checkpoint = any(list_checkpoints(folder))
    if (resume == "never" and others) or (not has_checkpoint and (folder / "results.json").exists()):
        raise UserError(
            f"The output folder {folder} holds another run already. Pass another `--output_dir`, or delete the folder."
        )
    lock.seek(0)
    lock.truncate()
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    _locks[str(folder.resolve())] = lock
    shutil.rmtree(folder / STAGING, ignore_errors=True)  # what a killed run left behind
    return folder


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    found = [
        entry
        for entry in Path(output_dir).glob("checkpoint-*")
        if re.fullmatch(r"checkpoint-\d+", entry.name) and entry.is_dir()
    ]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def newest_up_to(checkpoints: Iterable[Path], step: int) -> Path | None:
    """The first of some checkpoints, newest first, that is not after `step`."""
    return next((path for path in checkpoints if step_of(path) <= step), None)


def find_checkpoint(output_dir: str | Path, resume: str = "auto") -> Path | None:
    """The checkpoint to continue from: the newest whole one in `output_dir`, or the one that `resume` names.

    A damaged checkpoint is passed over with a warning. Where `resume` names a checkpoint of another folder and
    `output_dir` holds some already, the run goes on from its own: the same command continues what was stopped.

    Raises:
        UserError: if `resume` names a folder that is no whole checkpoint, or another version of hfssl wrote it.
    """
    if resume == "never":
        return None
    if resume != "auto":
        problem = _damage(Path(resume)) if Path(resume).is_dir() else "there is no such folder"
        if problem:
            meant = ", ".join(map(str, list_checkpoints(resume)))  # of a run whose folder was named
            there = ", ".join(map(str, list_checkpoints(output_dir)))
            raise UserError(
                f"`--resume {resume}` is no checkpoint to continue from: {problem}. "
                + (f"Those in it are {meant}. " if meant else "")
                + (f"Those of this run are {there}. " if there else f"{output_dir} holds none either. ")
                + ("Pass one of them" if meant or there else "Leave it out for a new run")
                + ", or pass `--resume auto` to continue from the newest of this run, if there is any."
            )
        _check_version(Path(resume))
        is_elsewhere = Path(resume).resolve().parent != Path(output_dir).resolve()
        own = find_checkpoint(output_dir) if is_elsewhere and list_checkpoints(output_dir) else None
        return own or Path(resume)
    for checkpoint in list_checkpoints(output_dir):
        problem = _damage(checkpoint)
        if not problem:
            _check_version(checkpoint)
            return checkpoint
        if checkpoint not in _reported:
            logger.warning("%s is damaged (%s). Trying the one before.", checkpoint, problem)
            _reported.add(checkpoint)
    if list_checkpoints(output_dir):
        raise UserError(f"No whole checkpoint is left in {output_dir}. Start again in another `--output_dir`.")
    return None


def set_aside(output_dir: str | Path, checkpoint: Path | None, all_newer: bool = False) -> None:
    """Rename checkpoints that are newer than the one to continue from, whose steps will be saved anew.

    Args:
        output_dir (`str` or `Path`):
            Folder of the run.
        checkpoint (`Path`, *optional*):
            The one to continue from.
        all_newer (`bool`, *optional*, defaults to `False`):
            Whole ones too: those of a run that is shorter than it is to be now. Else only the damaged ones.
    """
    for newer in list_checkpoints(output_dir):
        if checkpoint is not None and newer.resolve() == checkpoint.resolve():
            return
        is_damaged = _damage(newer) is not None
        if is_damaged or all_newer:
            aside = newer.with_name(f"{'damaged' if is_damaged else 'replaced'}-{newer.name}")
            shutil.rmtree(aside, ignore_errors=True)
            newer.rename(aside)


# Settings that a message names, where many differ.
_MOST_NAMED = 6
_LENGTHS = ("max_steps", "budget_minutes")
# Settings that runs always had and that earlier versions did not write: of a file without them they are not known.
_WRITTEN_LATER = ("encoder", "unit_encoder")
_WORDS = {
    "global_batch_size": "the rows of a step (per_device_train_batch_size × gradient_accumulation_steps × processes)",
    "data": "the digest of the data",
    "excluded": "what is held out or measured on",
    "batches_per_step": "the batches of a step (gradient_accumulation_steps × processes)",
}


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """What was sealed into a checkpoint: `files`, `settings`, `version`, `world_size`, `warmup_steps`."""
    return json.loads((checkpoint / MANIFEST).read_text())


def read_settings(checkpoint: Path) -> dict[str, Any]:
    """The settings of the run that a checkpoint belongs to."""
    return read_manifest(checkpoint)["settings"]


def _check_version(checkpoint: Path) -> None:
    version = read_manifest(checkpoint).get("version", 1)
    if version != VERSION:
        raise UserError(
            f"{checkpoint} was written by another version of hfssl (state {version}, this one continues {VERSION}). "
            "Continue with the version that wrote it, or pass another `--output_dir` for a new run."
        )


def check_settings(checkpoint: Path, settings: dict[str, Any], is_named: bool = False) -> None:
    """Refuse to continue a run with settings that would make it another run. It may be longer than it was.

    Args:
        checkpoint (`Path`):
            What to continue from.
        settings (`dict[str, Any]`):
            Those of this run.
        is_named (`bool`, *optional*, defaults to `False`):
            Whether the user named the checkpoint.

    Raises:
        UserError: naming each setting that differs.
    """
    then = read_settings(checkpoint)
    longer = {name for name in _LENGTHS if then.get(name, math.inf) < settings.get(name, 0)}
    changed = changed_settings(then, settings, may_differ=longer)
    if changed:
        new_run = "another `--output_dir`" + (" and no `--resume`" if is_named else "")
        raise UserError(
            f"{checkpoint.parent} holds another run: {'; '.join(changed)}. Pass {new_run} for a new run, or the same "
            "settings to continue this one (only `--max_steps`, `--epochs`, `--max_tokens` and `--budget_minutes` may "
            "be larger than they were)."
        )


def changed_settings(
    then: Mapping[str, Any], settings: Mapping[str, Any], may_differ: Iterable[str] = ()
) -> list[str]:
    """In words, the settings in which two runs differ, the first few of them.

    Args:
        then (`Mapping[str, Any]`):
            Those that a file kept.
        settings (`Mapping[str, Any]`):
            Those of this run.
        may_differ (`Iterable[str]`, *optional*):
            Names that do not count.
    """
    now = json.loads(json.dumps(dict(settings)))
    # a switch that the version of hfssl that wrote the file did not have was off
    then = {name: False for name, value in now.items() if isinstance(value, bool)} | then
    then = {name: now[name] for name in _WRITTEN_LATER if name in now} | then
    changed = [
        difference
        for name in sorted({*then, *now} - set(may_differ))
        if then.get(name) != now.get(name)
        for difference in _differences(_WORDS.get(name, name), then.get(name), now.get(name))
    ]
    changed = list(dict.fromkeys(changed))
    changed[_MOST_NAMED:] = [f"and {len(changed) - _MOST_NAMED} more"] if len(changed) > _MOST_NAMED else []
    return changed


def _differences(name: str, then: Any, now: Any) -> list[str]:
    """In words, where two values differ: of mappings and lists, which were kept as text, each part that does."""
    then, now = _parsed(then), _parsed(now)
    if isinstance(then, dict) and isinstance(now, dict):
        return [
            difference
            for field in dict.fromkeys((*then, *now))
            if then.get(field) != now.get(field)
            for difference in _differences(str(field), then.get(field), now.get(field))
        ]
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        pairs = [pair for pair in zip(then, now, strict=True) if pair[0] != pair[1]]
        if all(isinstance(part, dict) for pair in pairs for part in pair):
            return [difference for pair in pairs for difference in _differences(name, *pair)]
    return [f"{name} was {then!r}, is {now!r}"]


def _parsed(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(("[", "{")):
        with suppress(ValueError, SyntaxError):
            return ast.literal_eval(value)
    return value


def seal(folder: Path, settings: dict[str, Any], world_size: int = 1, warmup_steps: int = 0) -> None:
    """Write the manifest of a finished checkpoint and put everything on the disk itself."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        files[path.relative_to(folder).as_posix()] = [path.stat().st_size, _checksum(path)]
        _sync(path)
    manifest = {
        "version": VERSION, "files": files, "settings": settings, "world_size": world_size,
        "warmup_steps": warmup_steps,
    }  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    _sync(folder / MANIFEST)


def rotate(output_dir: str | Path, keep: int | None, good_step: int | None = None) -> None:
    """Delete all but the newest `keep` checkpoints, renamed first: a kill leaves no half-deleted checkpoint.

    Args:
        output_dir (`str` or `Path`):
            Folder of the run.
        keep (`int`, *optional*):
            Left out or 0: all.
        good_step (`int`, *optional*):
            Last step at which the run is known to have been learning. The newest checkpoint up to there stays as
            well, since of later ones nobody knows whether they are worth going back to.
    """
    there = list_checkpoints(output_dir)
    spared = None if good_step is None else newest_up_to(there, good_step)
    for old in there[max(keep, 1) :] if keep else []:
        if old == spared:
            continue
        trash = Path(output_dir) / STAGING / f"old-{old.name}"
        trash.parent.mkdir(exist_ok=True)
        shutil.rmtree(trash, ignore_errors=True)
        old.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or `None`."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())["files"]
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {MANIFEST} is not readable"
    for name, (size, checksum) in manifest.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size or _checksum(path) != checksum:
            return f"{name} was changed"
    return None


def _checksum(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def checkpoint_bytes(model: Any) -> int:
    """About how much a checkpoint takes: weights, and two moments in fp32 for what is trained."""
    sizes = [p.numel() * (p.element_size() + 8 * p.requires_grad) for p in model.parameters()]
    return int(1.05 * sum(sizes)) + (1 << 20)


def check_disk_space(output_dir: str | Path, model: Any) -> None:
    """Refuse to begin where neither a checkpoint nor a result could be written.

    Raises:
        UserError: if there is less room than for two checkpoints.
    """
    free, needed = shutil.disk_usage(output_dir).free, 2 * checkpoint_bytes(model)
    if free < needed:
        raise UserError(
            f"{output_dir} has {free / 1e9:.2f} GB left, a checkpoint of this model and its result need "
            f"{needed / 1e9:.2f} GB. Free some space or pass another `--output_dir`."
        )


def explain_full_disk(output_dir: str | Path, model: Any, what: str, last: Path | None, error: Exception) -> None:
    """Say so where it was for want of space that `what` could not be written.

    Raises:
        UserError: if there is less room than for a checkpoint.
    """
    needed = checkpoint_bytes(model)
    if shutil.disk_usage(output_dir).free < needed:
        raise UserError(
            f"No space left for {what} in {output_dir} ({type(error).__name__}). Last good checkpoint: "
            f"{last or 'none yet'}. Free {needed / 1e9:.2f} GB, then run the same command again."
        ) from error
