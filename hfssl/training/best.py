"""The best state of a run beside the last one: `--keep best` and `--early_stopping`."""

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from ..errors import UserError
from ..evaluation.facts import write_facts
from .checkpoints import STAGING


if TYPE_CHECKING:
    from .trainer import SSLTrainer

logger = logging.getLogger(__name__)

BEST = "best"
# What says which is the best, the first that is measured; of each, whether more is better.
_FIGURES = {"eval_knn_accuracy": True, "eval_knn_auroc": True, "eval_loss": False}


class Best(TrainerCallback):
    """Writes the encoder to `best/` of the output folder whenever an evaluation finds it better than all before, and
    ends a run that has not become better for some evaluations. What is best, the log of the run says: so a run that is
    resumed goes on with the same.

    Args:
        trainer ([`SSLTrainer`]):
            The run; its arguments say what is wanted.

    Raises:
        UserError: where nothing is measured.
    """

    def __init__(self, trainer: "SSLTrainer"):
        self.trainer, args = trainer, trainer.args
        self.keep, self.patience = args.keep == BEST, args.early_stopping
        wanted = "`--keep best`" if self.keep else "`--early_stopping`"
        if not trainer.evaluators:
            raise UserError(
                f"{wanted} goes by what is measured while a run trains, and here nothing is. Leave it out."
            )

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        figure = next((name for name in _FIGURES if name in (metrics or {})), None)
        if figure is None or state.global_step == 0:
            return
        best, value, since = _best_of(state.log_history, figure)
        if best == state.global_step and self.keep and state.is_world_process_zero:
            self._write(state.global_step, figure, metrics[figure])
        if self.patience is not None and since >= self.patience and not control.should_training_stop:
            logger.info(
                "%s has not become better in %d evaluations: the run ends at step %d. Its best was %.4f, at step %d.",
                _words(figure), since, state.global_step, value, best,
            )  # fmt: skip
            control.should_training_stop = control.should_save = True

    def _write(self, step: int, figure: str, value: float) -> None:
        trainer, folder = self.trainer, Path(self.trainer.args.output_dir)
        staging = folder / STAGING / BEST
        shutil.rmtree(staging, ignore_errors=True)
        staging.parent.mkdir(parents=True, exist_ok=True)
        model = trainer.accelerator.unwrap_model(trainer.model)
        model.export_encoder(staging, processor=trainer.processing_class)
        # k-NN is measured on labels: chosen by it, the figure is a little better than it would be on others
        write_facts(
            staging, method=model.config.model_type.removeprefix("hfssl_"), modality=model.modality,
            dataset=trainer.extra_settings.get("dataset"), pooling=getattr(model.config, "pooling", None), step=step,
            chosen_by=figure.removeprefix("eval_"), value=value,
        )  # fmt: skip
        shutil.rmtree(folder / BEST, ignore_errors=True)
        staging.rename(folder / BEST)
        logger.info("The best so far, by %s (%.4f), is step %d: %s.", _words(figure), value, step, folder / BEST)


def follow_best(trainer: "SSLTrainer") -> None:
    """Let a run keep its best state, or end when it becomes no better, where its arguments say so."""
    if trainer.args.keep == BEST or trainer.args.early_stopping is not None:
        trainer.add_callback(Best(trainer))


def is_stopped_early(history: list[dict[str, Any]], patience: int | None) -> bool:
    """Whether a run with this log has not become better for `patience` evaluations (`--early_stopping`)."""
    figure = next((name for name in _FIGURES if any(name in entry and entry["step"] for entry in history)), None)
    return patience is not None and figure is not None and _best_of(history, figure)[2] >= patience


def _best_of(history: list[dict[str, Any]], figure: str) -> tuple[int, float, int]:
    """The step with the best value of a figure, the first of several, this value, and how many were measured since."""
    sign = 1 if _FIGURES[figure] else -1
    measured = {entry["step"]: sign * entry[figure] for entry in history if figure in entry}
    measured.pop(0, None)  # before training
    best = max(measured, key=lambda step: (measured[step], -step))
    return best, sign * measured[best], sum(step > best for step in measured)


def _words(figure: str) -> str:
    return {"eval_knn_auroc": "k-NN AUROC", "eval_knn_accuracy": "k-NN accuracy", "eval_loss": "held-out loss"}[figure]
