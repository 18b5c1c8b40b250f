"""The way of a result folder to the Hub."""

import logging
import shutil
from pathlib import Path

from ..errors import UserError
from .checkpoints import STAGING


logger = logging.getLogger(__name__)


# What of a result folder may leave the machine. Optimizer states, pickles and event files (which carry the name of the
# host) never do.
PUSHED = (
    "README.md", "results.json", "run.json", "config.json", "generation_config.json", "*.safetensors",
    "*.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "*.model", "chat_template.jinja",
    "preprocessor_config.json", "processor_config.json", "assets/*.png", "pretraining/config.json",
    "pretraining/*.safetensors", "pretraining/*.safetensors.index.json",
)  # fmt: skip


def check_push(repo_id: str | None, token: str | None = None, private: bool | None = None) -> None:
    """Create the repository that `--push_to_hub` needs, before any training time is spent.

    Args:
        repo_id (`str`, *optional*):
            `--hub_model_id`.
        token (`str`, *optional*):
            `--hub_token`; that of the login when left out.
        private (`bool`, *optional*):
            `--hub_private_repo`.

    Raises:
        UserError: if it cannot be created.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if not repo_id:
        raise UserError("`--push_to_hub` needs a name: pass `--hub_model_id your-name/your-model`.")
    try:
        HfApi(token=token).create_repo(repo_id, private=private, exist_ok=True)
    except HFValidationError as error:
        raise UserError(f"`--hub_model_id {repo_id}` is no name of a repository: {error}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        help_ = (
            "Log in with `hf auth login`, or pass `--hub_token` of a token with write access to it."
            if status in (401, 403)
            else ""
        )
        raise UserError(f"Cannot push to {repo_id}: the Hub answered {status}. {help_}".rstrip()) from None
    except Exception as error:  # the client's own, those of its transport, those of the machine
        raise UserError(
            f"Cannot push to {repo_id}: the Hub cannot be reached ({type(error).__name__}). Train without "
            "`--push_to_hub`; the same command with it pushes the result later."
        ) from None


def push(
    folder: Path, repo_id: str, message: str, *, token: str | None = None, revision: str | None = None
) -> str | None:
    """Upload a result folder, from a staging folder with nothing else in it. A failure is logged and never raised.

    Args:
        folder (`Path`):
            The result folder.
        repo_id, token, revision (`str`, *optional*):
            Where to, as the Hub's client takes them.
        message (`str`):
            Of the commit.

    Returns:
        `str`: address of the repository, or `None` if the upload failed.
    """
    from huggingface_hub import HfApi

    staging = folder / STAGING / "push"
    try:
        shutil.rmtree(staging, ignore_errors=True)
        for pattern in PUSHED:
            for path in folder.glob(pattern):
                target = staging / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        commit = HfApi(token=token).upload_folder(
            repo_id=repo_id, folder_path=staging, commit_message=message, revision=revision
        )
        url = str(commit.repo_url)
        logger.info("Pushed to %s.", url)
        return url
    except Exception as error:  # the run must not die of it, whatever it is
        logger.warning(
            "The push to %s failed (%s: %s). The result is safe in %s. To push it later run the same command again, "
            "which then trains nothing, or: "
            'hf upload %s %s . --exclude "*checkpoint-*" --exclude "runs/*" --exclude ".*" --exclude "*hfssl.json" '
            '--exclude "*seen.npy" --exclude "report.html"',
            repo_id, type(error).__name__, str(error).split("\n")[0][:200], folder, repo_id,
            folder,
        )  # fmt: skip
        return None
    finally:
        shutil.rmtree(folder / STAGING, ignore_errors=True)
