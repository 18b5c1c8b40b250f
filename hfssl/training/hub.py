"""The way of a result folder to the Hub: what of it leaves the machine, where it may go, and what stands in the way.

What a repository holds is asked of the Hub each time, and compared by content: an upload that was cut goes on where
it was, since the Hub keeps what has arrived. One commit has all files of a result, so that a repository never holds
half of one.
"""

import glob
import hashlib
import logging
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.modality import modalities
from ..errors import UserError, first_line
from ..evaluation.results import read_json
from ..modeling.base import PLAIN_SETTINGS
from ..report.card import CARD
from ..report.record import PLAN, RESULTS, RUN, read_record
from .checkpoints import MANIFEST, list_checkpoints
from .repository import Repository


if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile
    from transformers import TrainingArguments

logger = logging.getLogger(__name__)


# What of a result folder may leave the machine. Optimizer states, pickles and event files (which carry the name of the
# host) never do.
_MODEL = (
    "config.json", "generation_config.json", PLAIN_SETTINGS, "*.safetensors", "*.safetensors.index.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "*.model", "chat_template.jinja", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip
_TOLD = (CARD, RESULTS, RUN, "assets/loss.png", "assets/health.png")
# What a repository may hold that holds no model yet: the Hub's pages put it there.
_OF_A_NEW_ONE = (".gitattributes", ".gitignore", CARD, "LICENSE", "LICENSE.md", "LICENSE.txt")
_CLASSIFIER = "model"
_WEIGHTS = re.compile(r"(?:\w+/)?model(?:-\d+-of-\d+)?\.safetensors(?:\.index\.json)?")
# Of files that are named in a message.
_MOST_NAMED = 3


@dataclass(frozen=True)
class Pushed:
    """What a push did: the address of the repository, the files that were sent, and those that were there already."""

    url: str
    sent: int
    there: int


def model_folder(folder: str | Path) -> Path:
    """Where the model lies that a result folder is about: itself after pre-training, `model/` after fine-tuning.

    Raises:
        UserError: where there is none, with what to do.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: name the result folder of a run, or of fine-tuning.")
    if _is_model(folder):
        return folder
    within = [path.parent for path in sorted(folder.glob(f"{_CLASSIFIER}/**/{CARD}")) if _is_model(path.parent)]
    if len(within) == 1:
        return within[0]
    if within:
        raise UserError(f"{folder} holds several models. Name one of them: {', '.join(map(str, within))}.")
    if (folder / PLAN).is_file():
        parts = [path for path in sorted(folder.iterdir()) if _is_model(path) or _is_model(path / _CLASSIFIER)]
        there = ", ".join(map(str, parts)) or "none that is done yet: the command of the whole, once more, goes on"
        raise UserError(f"{folder} holds several steps. Name the folder of one with a model: {there}.")
    if (folder / MANIFEST).is_file() or list_checkpoints(folder):
        raise UserError(
            f"{folder} is that of a run that has not ended, or a checkpoint of one. The command of the run, once "
            "more, goes on and writes the result; then name its folder."
        )
    results = read_json(folder / RESULTS, default=[])
    if results and isinstance(results, list):
        raise UserError(
            f"{folder} holds figures and no model. Figures belong into the card of the encoder that they are about: "
            "`recipes/probe.py` writes them there with `--update_card true`. Then push the folder of the encoder. "
            "(Fine-tuning keeps its model unless `--save_model false`.)"
        )
    raise UserError(f"{folder} is no result folder: it has no card ({CARD}) beside weights (*.safetensors).")


def _is_model(folder: Path) -> bool:
    return (folder / CARD).is_file() and any(folder.glob("*.safetensors"))


def shipped(folder: Path) -> dict[str, Path]:
    """What of a result folder leaves the machine: path in the repository to file.

    Args:
        folder (`Path`):
            Of [`model_folder`].
    """
    parts = ("", "pretraining", *modalities())
    patterns = [*_TOLD, *(f"{part}/{name}".lstrip("/") for part in parts for name in _MODEL)]
    # pictures that a probe has left there show samples that the card does not
    patterns += [f"assets/{glob.escape(name)}" for name in _pictures(folder)]
    files = {path.relative_to(folder).as_posix(): path for pattern in patterns for path in folder.glob(pattern)}
    for above in _above(folder):
        files[RESULTS] = above / RESULTS
    return {name: path for name, path in sorted(files.items()) if path.is_file()}


def _pictures(folder: Path) -> list[str]:
    """The pictures of a run that its card shows."""
    run = read_json(folder / RUN, default={})
    return [name for name, _ in run.get("pictures", [])] if isinstance(run, dict) else []


def _above(folder: Path) -> list[Path]:
    """The folder of fine-tuning that a classifier lies in."""
    resolved = folder.resolve()
    own = (resolved, resolved.parent)
    return [up for up in resolved.parents[:2] if up / _CLASSIFIER in own and (up / RESULTS).is_file()]


def result_name(folder: Path) -> str:
    """What a result is called: as its run was told to call it on the Hub, else like its folder."""
    run = read_json(folder / RUN, default={})
    name = run.get("name") if isinstance(run, dict) else None
    return name or next(iter(_above(folder)), folder.resolve()).name


def check_holds(repository: Repository, folder: Path, files: Iterable[str]) -> None:
    """Raise where a repository with these `files` holds anything but an earlier state of a result."""
    others = sorted(set(files) - set(_OF_A_NEW_ONE))
    if not others:
        return
    origin = _origin(folder)
    # the log of a short run may hold no loss yet
    pairs = list(zip(origin, _origin_there(repository, others), strict=False)) if origin else []
    if pairs and all(own == there for own, there in pairs):
        return
    more = len(others) - _MOST_NAMED
    named = ", ".join(others[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
    first = "" if repository.flag == "--repo_id" else "train without `--push_to_hub`, then "
    raise UserError(
        f"{repository.repo_id} holds something else than this result ({named}). Choose another `{repository.flag}`, "
        f"or {first}let the result take its place: `{repository.command(folder, overwrite=True)}`."
    )


def _origin_there(repository: Repository, files: Iterable[str]) -> list[Any]:
    with repository.explained(), tempfile.TemporaryDirectory(prefix="hfssl-") as kept:
        for name in {RUN, RESULTS} & set(files):
            repository.api.hf_hub_download(repository.repo_id, name, revision=repository.revision, local_dir=kept)
        try:
            return _origin(Path(kept))
        except (UserError, KeyError, TypeError, AttributeError):  # of something else that has a file of that name
            return []


def repository_of(args: "TrainingArguments") -> Repository:
    """Where a run pushes to, as its arguments say."""
    return Repository(
        args.hub_model_id or Path(args.output_dir).resolve().name,
        token=args.hub_token,
        private=args.hub_private_repo,
        revision=args.hub_revision,
        flag="--hub_model_id",
    )


def check_push(args: "TrainingArguments") -> None:
    """Prepare the repository that `--push_to_hub` needs, before any training time is spent, and name it in `args`.

    Raises:
        UserError: if it cannot be pushed to.
    """
    repository, folder = repository_of(args), Path(args.output_dir)
    try:
        repository.prepare()
    except UserError as error:
        later = repository.command(folder)
        raise UserError(f"{error} Or train without `--push_to_hub`; `{later}` pushes the result later.") from None
    check_holds(repository, folder, repository.files())
    args.hub_model_id = repository.repo_id


def upload(
    folder: Path,
    repository: Repository,
    message: str,
    *,
    overwrite: bool = False,
    change: Callable[[str, Path], bytes | Path] = lambda name, path: path,
) -> Pushed:
    """Send what of a result the Hub does not have yet, in one commit.

    Args:
        folder (`Path`):
            Of [`model_folder`].
        repository ([`Repository`]):
            Where to.
        message (`str`):
            Of the commit.
        overwrite (`bool`, *optional*, defaults to `False`):
            Take the place of something else that the repository holds.
        change (`Callable`, *optional*):
            What is sent instead of a file, given its path in the repository and itself.

    Raises:
        UserError: if it cannot be sent.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    there = repository.files()
    if not overwrite:
        check_holds(repository, folder, there)
    files = {name: change(name, path) for name, path in shipped(folder).items()}
    new = {name: content for name, content in files.items() if not _is_same(content, there.get(name))}
    # weights that came in other pieces before would be taken for those of this model
    kept = (lambda name: name == ".gitattributes") if overwrite else (lambda name: not _WEIGHTS.fullmatch(name))
    gone = [name for name in there if name not in files and not kept(name)]
    if new or gone:
        operations = [CommitOperationAdd(name, content) for name, content in new.items()]
        operations += [CommitOperationDelete(name) for name in gone]
        with repository.explained():
            repository.api.create_commit(
                repository.repo_id, operations, commit_message=message, revision=repository.revision
            )
    return Pushed(repository.url, len(new), len(files) - len(new))


def _is_same(content: bytes | Path, there: "RepoFile | None") -> bool:
    """Whether the Hub holds this content, by the digests that it lists."""
    if there is None:
        return False
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if there.size != size:
        return False
    digest = hashlib.sha1(b"blob %d\0" % size) if there.lfs is None else hashlib.sha256()
    if isinstance(content, bytes):
        digest.update(content)
    else:
        with content.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest() == (there.blob_id if there.lfs is None else there.lfs.sha256)


def _origin(folder: Path) -> list[Any]:
    """What two states of one result have in common: how its log begins, or the first figure of a classifier."""
    try:
        record = read_record(folder)
    except UserError:
        record = None
    if record is not None and record.history:
        # before the first step all runs of one seed are the same, whatever their settings
        losses = [entry for entry in record.history if "loss" in entry]
        return [record.history[0], *losses[:1]]
    beside = [folder, *_above(folder)]
    results = next((found for path in beside if (found := read_json(path / RESULTS, default=[]))), [])
    if not results or not results[0].get("per_seed"):
        return []
    names = ("protocol", "task", "split", "metric", "num_train")
    return [*(results[0][name] for name in names), results[0]["per_seed"][0]]


def push(folder: Path, repository: Repository, message: str) -> str | None:
    """Push a result at the end of a run. A failure is logged and never raised.

    Args:
        folder (`Path`):
            The result folder.
        repository ([`Repository`]):
            Where to.
        message (`str`):
            Of the commit.

    Returns:
        `str`: address of the repository, or `None` if the upload failed.
    """
    try:
        url = upload(folder, repository, message).url
        logger.info("Pushed to %s.", url)
        return url
    except Exception as error:  # the run must not die of it, whatever it is
        why = error if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}."
        logger.warning(
            "The push to %s failed. %s The result is safe in %s. To push it later: %s",
            repository.repo_id, why, folder, repository.command(folder),
        )  # fmt: skip
        return None


def push_result(
    folder: str | Path,
    repo_id: str | None = None,
    *,
    revision: str | None = None,
    private: bool | None = None,
    overwrite: bool = False,
) -> Pushed:
    """Push what a result folder holds; what is there already is not sent again.

    Args:
        folder (`str` or `Path`):
            Result folder of pre-training or fine-tuning.
        repo_id (`str`, *optional*):
            Where to; where the run was to push to when left out, else a repository that is called like the folder.
        revision (`str`, *optional*):
            Branch to push to.
        private (`bool`, *optional*):
            Whether it is to be private.
        overwrite (`bool`, *optional*, defaults to `False`):
            Take the place of something else that it holds.

    Raises:
        UserError: if it cannot be pushed.
    """
    model = model_folder(folder)
    repository = Repository(repo_id or result_name(model), private=private, revision=revision)
    repository.prepare()

    def named(name: str, path: Path) -> bytes | Path:
        if name != CARD:
            return path
        own = model.resolve()
        # one of several classifiers is called like the folder that they lie in
        above = {each for up in _above(model) for each in (up.name, own.parent.name)}
        known = {result_name(model), own.name} | above
        return renamed(path.read_text(encoding="utf-8"), known, repository.repo_id).encode()

    return upload(model, repository, "Result", overwrite=overwrite, change=named)


_LOADED = re.compile(r"""((?:from_pretrained\(|pipeline\("[\w-]+", )")([^"\n]+)(?=")""")


def renamed(card: str, known: set[str], repo_id: str) -> str:
    """A card whose title and Python name the repository, where they name the folder that its model lay in.

    Args:
        card (`str`):
            The card.
        known (`set[str]`):
            Names of the result and of its folder.
        repo_id (`str`):
            The repository.
    """

    def other(found: re.Match) -> str:
        name = found[2].rstrip("/")
        return found[1] + (repo_id if name in known or name.rpartition("/")[2] in known else found[2])

    title = "|".join(map(re.escape, sorted(known)))
    return re.sub(rf"^# (?:{title})$", f"# {repo_id}", _LOADED.sub(other, card), count=1, flags=re.M)
