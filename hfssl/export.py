"""The result folder of a run, and its way to the Hub."""

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .checkpoints import STAGING
from .errors import UserError
from .evaluation.results import write_results
from .training_args import SSLTrainingArguments


if TYPE_CHECKING:
    from .trainer import SSLTrainer

logger = logging.getLogger(__name__)

# What of a result folder may leave the machine. Optimizer states, pickles and event files (which carry the name of the
# host) never do.
PUSHED = (
    "README.md", "results.json", "config.json", "generation_config.json", "*.safetensors",
    "*.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "*.model", "chat_template.jinja",
    "preprocessor_config.json", "processor_config.json", "assets/*.png", "pretraining/config.json",
    "pretraining/*.safetensors", "pretraining/*.safetensors.index.json",
)  # fmt: skip


def write_result(
    trainer: "SSLTrainer",
    output_dir: Path,
    state_dict: dict[str, torch.Tensor] | None = None,
    contrasted: tuple[int, int] | None = None,
    **card: Any,
) -> None:
    """Write the stock encoder, the processor, `pretraining/`, pictures, `results.json` and the card into `output_dir`.

    Everything is written aside first and moved when it is complete.
    """
    from .health import plot_health
    from .model_card import plot_history, write_card

    staging = output_dir / STAGING / "result"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.export_encoder(staging, state_dict)
    if trainer.processing_class is not None:
        trainer.processing_class.save_pretrained(staging)
    model.save_pretrained(staging / "pretraining", state_dict=state_dict)
    plot_history(trainer.state.log_history, staging / "assets" / "loss.png", contrasted)
    plot_health(trainer.state.log_history, staging / "assets" / "health.png")
    for picture, _ in card.get("pictures", ()):
        shutil.copyfile(picture, staging / "assets" / picture.name)
    write_card(staging / "README.md", trainer, staging, **card)
    for entry in staging.iterdir():
        target = output_dir / entry.name
        if target.is_dir():
            shutil.rmtree(target)
        entry.replace(target)
    shutil.rmtree(output_dir / STAGING, ignore_errors=True)
    if card.get("results"):
        write_results(output_dir / "results.json", card["results"])


def check_push(args: SSLTrainingArguments) -> None:
    """Create the repository that `--push_to_hub` needs, before any training time is spent.

    Raises:
        UserError: if it cannot be created.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if args.process_index != 0:
        return
    if not args.hub_model_id:
        raise UserError("`--push_to_hub` needs a name: pass `--hub_model_id your-name/your-model`.")
    try:
        HfApi(token=args.hub_token).create_repo(args.hub_model_id, private=args.hub_private_repo, exist_ok=True)
    except HFValidationError as error:
        raise UserError(f"`--hub_model_id {args.hub_model_id}` is no name of a repository: {error}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        help_ = (
            "Log in with `hf auth login`, or pass `--hub_token` of a token with write access to it."
            if status in (401, 403)
            else ""
        )
        raise UserError(f"Cannot push to {args.hub_model_id}: the Hub answered {status}. {help_}".rstrip()) from None
    except Exception as error:  # the client's own, those of its transport, those of the machine
        raise UserError(
            f"Cannot push to {args.hub_model_id}: the Hub cannot be reached ({type(error).__name__}). Train without "
            "`--push_to_hub`; the same command with it pushes the result later."
        ) from None


def push(output_dir: Path, args: SSLTrainingArguments, message: str) -> str | None:
    """Upload the result folder, from a staging folder with nothing else in it. A failure is logged and never raised.

    Returns:
        `str`: address of the repository, or `None` if the upload failed.
    """
    from huggingface_hub import HfApi

    staging = output_dir / STAGING / "push"
    try:
        shutil.rmtree(staging, ignore_errors=True)
        for pattern in PUSHED:
            for path in output_dir.glob(pattern):
                target = staging / path.relative_to(output_dir)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        commit = HfApi(token=args.hub_token).upload_folder(
            repo_id=args.hub_model_id, folder_path=staging, commit_message=message, revision=args.hub_revision
        )
        url = str(commit.repo_url)
        logger.info("Pushed to %s.", url)
        return url
    except Exception as error:  # the run must not die of it, whatever it is
        logger.warning(
            "The push to %s failed (%s: %s). The result is safe in %s. To push it later run the same command again, "
            "which then "
            'trains nothing, or: hf upload %s %s . --exclude "*checkpoint-*" --exclude "runs/*" --exclude ".*"',
            args.hub_model_id, type(error).__name__, str(error).split("\n")[0][:200], output_dir, args.hub_model_id,
            output_dir,
        )  # fmt: skip
        return None
    finally:
        shutil.rmtree(output_dir / STAGING, ignore_errors=True)
