"""`transformers.Trainer` for pre-training: exact streams, right gradients, whole checkpoints, a stock result.

The loop, Accelerate, precision and trackers are Trainer's. Overridden is only what is listed here, each with a
contract test in `tests/training/test_trainer.py` that fails when a new transformers breaks it:

- `get_train_dataloader`: an [`ExactStream`] is its own loader; neither Trainer nor Accelerate shard it again; where a
  method makes targets of its data, batches have them;
- `_get_num_items_in_batch`: the item count of the loss is asked of the method;
- `compute_loss`, `log`: the terms of a loss are logged by name;
- `_prepare_input`: a batch goes to a GPU while the step before runs;
- `training_step`: each micro-step draws from its own seed, so that dropout is the same after a resume; micro-steps may
  share one contrastive batch;
- `evaluate`: runs evaluators, and looks for collapse;
- `get_optimizer_cls_and_kwargs`, `get_decay_parameter_names`: LARS; no weight decay on any norm;
- `create_optimizer`, `create_scheduler`: rates of their own; with a budget of time they follow the clock;
- `_load_optimizer_and_scheduler`: a run may go on for longer;
- `_issue_warnings_after_load`: a checkpoint with other weights than the model's is refused;
- `train`, `_save_checkpoint`, `_get_output_dir`: checkpoints are written aside, sealed and renamed; stopped runs
  continue;
- `init_hf_repo`, `push_to_hub`, `_push_from_checkpoint`: pushes go from a staging folder and never end a run.
"""

import json
import logging
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerState

from ..data.sources import identity
from ..data.stream import ExactStream
from ..errors import UserError
from ..evaluation.evaluator import Evaluator
from ..evaluation.verdict import collapse_error, has_ended, last_learning_step
from ..functional import keyed
from ..functional.keyed import Use
from ..machine import choices
from ..modeling.base import SSLPreTrainedModel
from ..modeling.corpus_targets import CorpusTargetsMixin
from ..modeling.token_loss import use_liger
from ..report.page import report_safely
from . import attention, checkpoints
from .arguments import LARS, SSLTrainingArguments
from .best import follow_best, is_stopped_early
from .callbacks import (
    BudgetClock,
    MethodCallback,
    ProgressBar,
    StopOnNonFiniteLoss,
    StopOnSignal,
    WeightDecaySchedule,
    check_finite,
)
from .corpus_targets import CorpusTargets
from .cost import Cost, gpu_energy
from .evaluations import EvaluationPace, measure_all
from .gradient_cache import GradientCache
from .health import HealthMonitor
from .hub import check_push, push, repository_of
from .loss_terms import LossTerms
from .optim import Lars, clock_scheduler, hold_rates, lars_options, set_rates_apart
from .record import record_of
from .result_folder import write_result
from .settings import is_longer, set_length, settings_of_run, take_new_rates


logger = logging.getLogger(__name__)

# The seconds trained so far, in the checkpoints of a run with a budget of time.
_CLOCK = "clock.json"


class SSLTrainer(Trainer):
    r"""
    Pre-trains a method on a stream.

    Args:
        model ([`SSLPreTrainedModel`]):
            The method around its encoder.
        args ([`SSLTrainingArguments`]):
            The run. `output_dir` should have been claimed with [`~checkpoints.claim_output_dir`] by the main process.
        train_dataset ([`ExactStream`]):
            The stream of this process. Any other data set goes the way that Trainer gives it, without exact resumes.
        evaluators (`Sequence[Evaluator]`, *optional*):
            What to measure on the model during training. Each has `measure(model) -> dict[str, float]`. What they are
            `measured_on` is never trained on.
        settings (`dict[str, Any]`, *optional*):
            What else makes this run this run (data set, tokenizer …), in words that an error message can use.
        held_out (`Sequence[str]`, `Sequence[bytes]` or `Mapping[str, Sequence]`, *optional*):
            Held-out texts or encoded images (of pairs, those of each side by its input), on which each evaluation also
            looks for collapse ([`HealthMonitor`]). Never trained on either.
    """

    def __init__(
        self,
        model: SSLPreTrainedModel,
        args: SSLTrainingArguments,
        train_dataset: Any = None,
        evaluators: Sequence[Evaluator] = (),
        settings: dict[str, Any] | None = None,
        held_out: Sequence[str] | Sequence[bytes] | Mapping[str, Sequence] = (),
        **kwargs,
    ):
        self.stream = train_dataset if isinstance(train_dataset, ExactStream) else None
        self.evaluators = list(evaluators)
        if self.stream is not None:
            measured_on = (getattr(evaluator, "measured_on", ()) for evaluator in self.evaluators)
            leading = held_out[self.stream.source.leading] if isinstance(held_out, Mapping) else held_out
            self.stream.leave_out(frozenset(map(identity, leading)).union(*measured_on))
        self.extra_settings = dict(settings or {})
        self.resumed_from: Path | None = None
        self.is_longer = False  # whether it is meant to be longer now than it was when it was stopped
        self.clock = BudgetClock(60 * args.budget_minutes) if args.budget_minutes else None
        self.cost = Cost(energy=partial(gpu_energy, args.device))
        self._micro_step = (-1, 0)
        self._terms = LossTerms(getattr(model, "loss_units", ()), getattr(model, "figures", ()))
        self._saving_to: str | None = None
        if (self.evaluators or held_out) and kwargs.get("eval_dataset") is None:
            kwargs["eval_dataset"] = "evaluators"  # Trainer refuses an eval_strategy without any
        set_length(args, self.stream)
        if self.stream is not None and args.max_steps < 1:
            raise UserError(
                "A stream has no end: `--max_steps` (or `--max_tokens`) says when the run has, and must be at least "
                f"1, got {args.max_steps}."
            )
        if getattr(model, "loss_groups", None):
            raise UserError(
                f"{type(model).__name__} has losses that train different parameters ({', '.join(model.loss_groups)}), "
                "and SSLTrainer has one optimizer for one loss. Train it in a loop of your own."
            )
        if args.freeze_layers or args.lora_rank is not None:
            model.keep_of_checkpoint(args.freeze_layers, args.lora_rank)
        if args.freeze_batch_norm:
            model.keep_statistics()
        self.cache = GradientCache(model, args) if args.contrastive_batch_size else None
        if args.use_liger_kernel:
            use_liger(model, args.device)
        super().__init__(model, args, train_dataset=train_dataset, **kwargs)
        self.health = HealthMonitor(held_out, self.processing_class, model.modality, self.stream) if held_out else None
        for default in (ProgressCallback, PrinterCallback):
            self.remove_callback(default)
        self.stop = StopOnSignal()
        if self.clock is not None:
            self.add_callback(self.clock)
        self.add_callback(MethodCallback(self.clock))
        if args.weight_decay_end is not None:
            self.add_callback(WeightDecaySchedule(args.weight_decay_end, self.clock))
        self.add_callback(ProgressBar(self.stream, self.clock))
        follow_best(self)
        self.pace = EvaluationPace(self.clock)
        self.add_callback(self.pace)
        self.add_callback(self.cost)
        self.add_callback(StopOnNonFiniteLoss(self.last_checkpoint))
        self.add_callback(self.stop)
        self.targets: CorpusTargets | None = None
        if self.stream is not None and isinstance(model, CorpusTargetsMixin):
            self.targets = CorpusTargets(
                model, self.stream, args, self._progress, self.compute_loss_context_manager, lambda: self.settings
            )
            self.add_callback(self.targets)

    # -- the run --------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> dict[str, Any]:
        """What makes this run this run; kept in each checkpoint and compared on a resume."""
        config = self.accelerator.unwrap_model(self.model).config
        return settings_of_run(self.args, config, self.stream, **self.extra_settings)

    def last_checkpoint(self) -> Path | None:
        return next(iter(checkpoints.list_checkpoints(self.args.output_dir)), None)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """Train, or go on where the run in `output_dir` stopped (`args.resume`).

        Raises:
            UserError: if the run cannot be continued with these settings, or its loss is no number any more.
            SystemExit: after SIGTERM or SIGINT, once the checkpoint is written (128 + the signal's number, as shells
            do).
        """
        if resume_from_checkpoint is None:
            resume_from_checkpoint = checkpoints.find_checkpoint(self.args.output_dir, self.args.resume)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = checkpoints.find_checkpoint(self.args.output_dir)
        if resume_from_checkpoint:
            self.resumed_from = Path(resume_from_checkpoint)
            self.args.keep_global_batch(self.resumed_from)
            checkpoints.check_settings(self.resumed_from, self.settings, is_named=self.args.resume != "auto")
            self.is_longer = is_longer(self.args, self.resumed_from)
            self.accelerator.wait_for_everyone()  # until all have looked for it
            if self.args.should_save:
                checkpoints.set_aside(self.args.output_dir, self.resumed_from, all_newer=self.is_longer)
            logger.info("Continuing from %s.", self.resumed_from)
        elif self.args.should_save:
            checkpoints.check_disk_space(self.args.output_dir, self.model)
        if self.clock is not None:
            trained = json.loads((self.resumed_from / _CLOCK).read_text()) if self.resumed_from else {"seconds": 0.0}
            self.clock.seconds = trained["seconds"]
        self.cost.load(self.resumed_from)
        # the state before training is measured once, not again after each resume
        self.args.eval_on_start = bool(self.evaluators or self.health) and self.resumed_from is None
        if self.resumed_from is not None and self._is_finished(self.resumed_from):
            flag = "--max_steps" if self.clock is None else "--budget_minutes"
            flag = "--early_stopping" if is_stopped_early(self.state.log_history, self.args.early_stopping) else flag
            logger.info(
                "The run is finished: %s is its last step. A larger `%s` continues it.", self.resumed_from, flag
            )
            return None
        result = super().train(resume_from_checkpoint=str(self.resumed_from) if self.resumed_from else None, **kwargs)
        self._check_finite()  # the last step may have spoiled what no checkpoint was written of
        if self.stop.stopped:
            checkpoint = self.last_checkpoint()
            self.accelerator.wait_for_everyone()
            said = "Stopped at step %d, saved as %s. The same command goes on from there."
            logger.info(said, self.state.global_step, checkpoint)
            sys.exit(128 + getattr(signal, self.stop.received or "SIGTERM"))
        return result

    def _is_finished(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is the last step of its run; if so, become it."""
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        is_over = self.clock is not None and self.clock.progress == 1.0 or state.global_step >= self.args.max_steps
        if not (is_over or is_stopped_early(state.log_history, self.args.early_stopping)):
            return False
        self._load_from_checkpoint(str(checkpoint))
        self.state = state
        if self.stream is not None:
            self._load_stream(checkpoint)
        return True

    def _load_stream(self, checkpoint: Path) -> None:
        """Go on where the processes that wrote the checkpoint stood, however many they were."""
        self.stream.load_state_dict(*(json.loads(path.read_text()) for path in checkpoint.glob("stream_*.json")))

    def get_train_dataloader(self):
        if self.stream is None:
            return super().get_train_dataloader()
        if self.resumed_from is not None:
            self._load_stream(self.resumed_from)
        if self.resumed_from is not None and self.targets is not None:
            self.targets.load(self.resumed_from)
        self.stream.makes_later = self.cache is not None
        return self.targets or self.stream

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device):
        if self.cache is not None:
            self.cache.batches = batch_samples
            return None  # its loss is a mean over rows
        method = self.accelerator.unwrap_model(self.model)
        counts = (
            [method.loss_items(batch) for batch in batch_samples] if isinstance(method, SSLPreTrainedModel) else [None]
        )
        if not counts or counts[0] is None:
            return (
                None
                if isinstance(method, SSLPreTrainedModel)
                else super()._get_num_items_in_batch(batch_samples, device)
            )
        if isinstance(counts[0], dict):
            uncounted = set(method.loss_units) - set(counts[0])
            if uncounted:
                raise ValueError(
                    f"`loss_items` of {type(method).__name__} counts {', '.join(counts[0])}, but not "
                    f"{', '.join(sorted(uncounted))}: where one term is counted all are. A mean over samples counts "
                    "the rows of the batch, and its sum is divided by them."
                )
            return {name: self._sum_over_processes([count[name] for count in counts], device) for name in counts[0]}
        return self._sum_over_processes(counts, device)

    def _sum_over_processes(self, counts: list[torch.Tensor], device: torch.device) -> torch.Tensor:
        total = torch.stack(list(counts)).sum().float()
        if total.device.type == "cpu" != device.type:  # what the collator counted: to copy it would wait for the GPU
            total = torch.full((), total.item(), device=device)
        if self.args.world_size > 1:
            dist.all_reduce(total)
        return total.clamp(min=1.0)  # a batch without any item has loss 0, not 0 / 0

    def _prepare_input(self, data):
        if isinstance(data, torch.Tensor) and data.device.type == "cpu" and self.args.device.type == "cuda":
            data = data.pin_memory().to(self.args.device, non_blocking=True)  # the CPU does not wait until it is there
        return super()._prepare_input(data)

    def training_step(self, model, inputs, num_items_in_batch=None):
        step, micro = self._micro_step
        micro = micro + 1 if step == self.state.global_step else 0
        self._micro_step = (self.state.global_step, micro)
        with nullcontext(inputs) if self.cache is None else self.cache.micro_step(self, micro) as made:
            self.seed_micro_step(micro)
            return super().training_step(model, made, num_items_in_batch)

    def seed_micro_step(self, micro: int) -> None:
        here = (self.state.global_step, micro, self.args.process_index)
        torch.manual_seed(keyed.torch_seed(Use.TRAINING_STEP, self.args.seed, *here))

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            # terms as Trainer scales the whole loss
            share = 1 / self.current_gradient_accumulation_steps
            is_mean = not self.model_accepts_loss_kwargs or num_items_in_batch is None
            scale = share if is_mean else self.accelerator.num_processes
            self._terms.add(outputs, scale, share, self.state.global_step)
        return (loss, outputs) if return_outputs else loss

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: SSLTrainingArguments, model=None) -> tuple[Any, dict[str, Any]]:
        if args.optim != LARS:
            return Trainer.get_optimizer_cls_and_kwargs(args, model)
        return Lars, {"lr": args.learning_rate, **lars_options(args.optim_args)}

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        # Trainer's own goes by names and misses the weights of batch norms
        one_dimensional = {name for name, parameter in model.named_parameters() if parameter.ndim <= 1}
        return [name for name in super().get_decay_parameter_names(model) if name not in one_dimensional]

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            optimizer = super().create_optimizer(model)
            method = self.accelerator.unwrap_model(self.model)
            rates = self.args.bias_rate, self.args.layer_decay, self.args.patch_embed_rate
            set_rates_apart(optimizer, model or self.model, method, *rates)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        if self.lr_scheduler is None:
            if self.clock is not None:
                self.lr_scheduler = clock_scheduler(optimizer or self.optimizer, self.clock, self.args)
                self._created_lr_scheduler = True
            hold_rates(super().create_scheduler(num_training_steps, optimizer))
        return self.lr_scheduler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if not self.is_longer:
            return
        self.state.compute_steps(self.args, self.state.max_steps)  # how often to log, evaluate and save
        then, now = take_new_rates(self.lr_scheduler, self.optimizer)
        stretched = f"is stretched: at step {self.state.global_step} it was {then:g}, and is {now:g} now"
        logger.info(
            "The run is longer than it was. Its learning rate (%s) %s. What else follows the share of the run that is "
            "done, such as the momentum of a teacher, is stretched to the new length as well.",
            getattr(self.args.lr_scheduler_type, "value", self.args.lr_scheduler_type),
            "goes on as it was" if then == now else stretched,
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self._terms.take(self.state.global_step, self.args.world_size)
        super().log(logs, start_time)
        if self.stream is not None:  # a stream has passes and tokens, and no epochs
            for entry in (logs, self.state.log_history[-1]):
                entry.pop("epoch", None)
            self.state.log_history[-1][self.stream.unit] = self.stream.run_counts["units"]

    # -- evaluation -----------------------------------------------------------------------------------------------

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Run the evaluators on the model as it is, log what they measure and return it."""
        if not self.evaluators and self.health is None:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        start = time.monotonic()
        metrics = measure_all(self, metric_key_prefix)
        self.pace.add(time.monotonic() - start)
        self.log(metrics)
        if self.args.stop_on_collapse and has_ended(metrics.get("health_verdict", "")):
            good_step = last_learning_step(self.state.log_history)
            there = checkpoints.list_checkpoints(self.args.output_dir)
            good = None if good_step is None else checkpoints.newest_up_to(there, good_step)
            raise collapse_error(metrics, self.state.global_step, good)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _progress(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        if self.clock is not None:
            return self.clock.progress
        return self.state.global_step / max(self.state.max_steps, 1)

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def _get_output_dir(self, trial) -> str:
        return self._saving_to or super()._get_output_dir(trial)

    def _check_finite(self) -> None:
        here = self.state.global_step, self._get_learning_rate(), self.last_checkpoint()
        check_finite(self._tr_loss, self.model, *here)

    def _save_checkpoint(self, model, trial) -> None:
        """Write the checkpoint aside, seal it, then rename it: a folder called checkpoint-N is always whole."""
        self._check_finite()
        output_dir = Path(self.args.output_dir)
        name = f"checkpoint-{self.state.global_step}"
        staging = output_dir / checkpoints.STAGING
        if (output_dir / name).exists():  # this very step was saved before the run was stopped
            return
        try:
            if self.args.should_save:
                shutil.rmtree(staging / name, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            self._saving_to = str(staging)
            super()._save_checkpoint(model, trial)
            if self.stream is not None:
                state = json.dumps(self.stream.state_dict(), indent=1)
                (staging / name / f"stream_{self.args.process_index}.json").write_text(state)
            if self.targets is not None and self.args.should_save:
                self.targets.save(staging / name)
            if self.clock is not None and self.args.should_save:
                (staging / name / _CLOCK).write_text(json.dumps({"seconds": self.clock.elapsed()}))
            if self.args.should_save:
                self.cost.save(staging / name)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                attention.save(self.accelerator.unwrap_model(self.model), staging / name)
                warmup = self.args.get_warmup_steps(self.state.max_steps)
                checkpoints.seal(staging / name, self.settings, self.args.world_size, warmup)
                (staging / name).rename(output_dir / name)
                good_step = last_learning_step(self.state.log_history)
                checkpoints.rotate(output_dir, self.args.save_total_limit, good_step)
        except Exception as error:
            shutil.rmtree(staging / name, ignore_errors=True)
            self._explain_full_disk(name, error)
            raise
        finally:
            self._saving_to = None
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub and self.args.hub_strategy == "every_save":
            self.finish(title=f"step {self.state.global_step}", last=False)

    def _issue_warnings_after_load(self, load_result) -> None:
        """Weights that a checkpoint lacks would go on from what the seed gives: not a thing for a warning."""
        state = self.model.state_dict()
        missing = set(load_result.missing_keys)
        loaded = {tensor.data_ptr() for name, tensor in state.items() if name not in missing}
        lost = [name for name in load_result.missing_keys if state[name].data_ptr() not in loaded]  # others are tied
        if lost or load_result.unexpected_keys:
            name = (lost + load_result.unexpected_keys)[0]
            raise UserError(
                f"{self.resumed_from or 'The checkpoint'} does not hold the weights of this model: {len(lost)} are "
                f"missing and {len(load_result.unexpected_keys)} unknown, such as {name}. Continue with the version "
                "of hfssl and transformers that wrote it, or pass another `--output_dir`."
            )

    def _explain_full_disk(self, what: str, error: Exception) -> None:
        checkpoints.explain_full_disk(self.args.output_dir, self.model, what, self.last_checkpoint(), error)

    # -- the result -----------------------------------------------------------------------------------------------

    def finish(self, *, title: str = "End of training", last: bool = True, **card: Any) -> Path:
        """Write the result folder: the stock encoder, `pretraining/`, the card, pictures; then push it if asked to.

        Args:
            title (`str`, *optional*):
                Message of the commit on the Hub.
            last (`bool`, *optional*, defaults to `True`):
                Whether the run is over.
            card (`dict`, *optional*):
                What the recipe adds to the card: `examples`, `results`, `data`; and `contrasted`, see
                [`~hfssl.report.curves.plot_history`].
        """
        output_dir = Path(self.args.output_dir)
        if self.args.should_save:
            try:
                write_result(record_of(self), output_dir, **card)
            except Exception as error:
                shutil.rmtree(output_dir / checkpoints.STAGING, ignore_errors=True)
                self._explain_full_disk("the result", error)
                raise
            if last:
                choices(forget=True)
                report_safely(output_dir)
            if self.args.push_to_hub:
                push(output_dir, repository_of(self.args), title)
        self.accelerator.wait_for_everyone()
        return output_dir

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Trainer's constructor calls this: a Hub that cannot take the result should be known before the training."""
        if self.args.process_index == 0:
            check_push(self.args)

    def push_to_hub(self, commit_message: str = "End of training", **kwargs) -> None:
        self.finish(title=commit_message)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Trainer's own would upload optimizer arguments as a pickle and event files with the name of the host."""

    def _finish_current_push(self) -> None:
        """Nothing is pushed in the background."""
