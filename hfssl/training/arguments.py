"""The arguments of a pre-training run: `TrainingArguments` with the defaults of pre-training."""

import json
import logging
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.distributed as dist
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from ..errors import UserError
from ..machine import choose_precision, local_world_size, num_cores, use_all_cores, use_one_gpu
from . import checkpoints
from .hub import check_push


logger = logging.getLogger(__name__)

# `max_steps` of a run that something else ends: Trainer wants a number.
ENDLESS = 10**12

# The default of `--optim`, as of transformers with any torch that it supports.
OPTIMIZER = "adamw_torch_fused"
# `--optim` of [`~hfssl.training.optim.Lars`]: TrainingArguments knows its own names only.
LARS = "lars"
# Processes that prepare data, where their number is left to choose: each holds blocks in shared memory.
MOST_WORKERS = 16
# What a base learning rate is the learning rate of: in papers on images, 256 samples a step.
BASE_BATCH_SIZE = 256


@dataclass
class SSLTrainingArguments(TrainingArguments):
    r"""
    [`~transformers.TrainingArguments`] for pre-training on streams.

    Defaults that differ: `per_device_train_batch_size=32`, `weight_decay=0.01`, `adam_beta2=0.98`,
    `adam_epsilon=1e-6`, `warmup_steps=0.06` (a share of all steps), `eval_strategy="steps"` ten times a run,
    `save_total_limit=2`, `report_to="tensorboard"`, `logging_nan_inf_filter=False` (a non-finite loss stops the run
    instead of being hidden), `ddp_find_unused_parameters=False`, `dataloader_num_workers=-1`, `hub_strategy="end"`.

    Args:
        output_dir (`str`, *optional*):
            Folder of the run: checkpoints while it goes on, at the end the encoder, its card and its figures.
        max_steps (`int`, *optional*):
            Length of the run in optimizer steps.
        per_device_train_batch_size (`int`, *optional*, defaults to `32`):
            Rows a process sees at once.
        seed (`int`, *optional*, defaults to `42`):
            Of new weights, of the order of the samples, and of what is random about each.
        gradient_accumulation_steps (`int`, *optional*, defaults to `1`):
            Batches whose gradients make one step together.
        contrastive_batch_size (`int`, *optional*):
            For methods that compare the samples of a step with each other, where these do not fit into memory: so many
            over all processes, embedded `per_device_train_batch_size` at a time and once more for the gradient, which
            is that of all together. Left out, the samples of a batch are compared.
        freeze_batch_norm (`bool`, *optional*, defaults to `False`):
            Let batch norms keep the statistics that they have, those of a checkpoint: no sample depends on the others
            of its batch. From scratch they norm nothing then.
        save_steps (`float`, *optional*, defaults to `500`):
            Write a checkpoint every so many steps; below 1 a share of all steps.
        save_total_limit (`int`, *optional*, defaults to `2`):
            Newest checkpoints to keep.
        logging_steps (`float`, *optional*, defaults to `10`):
            Log every so many steps; below 1 a share of all steps.
        activation_checkpointing (`bool`, *optional*, defaults to `False`):
            Compute activations a second time instead of keeping them: less memory, about a fifth slower.
        push_to_hub (`bool`, *optional*, defaults to `False`):
            Push the result to the Hub when the run has ended.
        hub_model_id (`str`, *optional*):
            Repository to push to. Left out, it is called like the output folder.
        precision (`str`, *optional*, defaults to `"auto"`):
            Number format of the matrix products: fp32, bf16 or fp16. auto takes bf16 where the hardware has it
            natively.
        max_tokens (`int`, *optional*):
            Length of the run in tokens (positions of packed rows), instead of `max_steps`.
        epochs (`float`, *optional*):
            Length of the run in passes over the training samples, instead of `max_steps`; not of text, whose samples
            are joined to rows.
        budget_minutes (`float`, *optional*):
            Length of the run in minutes of training, instead of `max_steps`; evaluations during it count, the last one
            and the export do not. Learning rate, `warmup_steps`, `eval_steps` and `save_steps` below 1 follow the
            share of the budget that is used up. A resumed run goes on with the minutes it has left; the number of its
            steps, and so its weights, depend on the machine.
        resume (`str`, *optional*, defaults to `"auto"`):
            auto continues the run that lies in `output_dir`, never refuses to, a folder is a checkpoint to continue
            from, of this run or of one in another folder. A run may go on with more `max_steps`, `max_tokens` or
            `budget_minutes` than it had. Its warm-up stays as many steps; a learning rate that is constant until its
            decay goes on as it was; what follows the share of the run that is done is stretched to the new length.
        hub_private_repo (`bool`, *optional*):
            Make the repository private. Left out, it is public, unless its organisation has private ones by default.
        hub_license (`str`, *optional*):
            Licence of the result, for its card, by its name on the Hub, such as apache-2.0.
        hub_language (`list[str]`, *optional*):
            Languages of the data, for the card: codes such as en.
        use_cpu (`bool`, *optional*, defaults to `False`):
            Leave a GPU alone.
        cpu_threads (`int`, *optional*):
            Threads of each process. Left out, the cores are shared out among the processes, unless OMP_NUM_THREADS is
            set.
        stop_on_collapse (`bool`, *optional*, defaults to `False`):
            End the run when its embeddings have collapsed or it has diverged (see `hfssl/evaluation/verdict.py`),
            instead of only saying so. Either way the newest checkpoint up to the last evaluation that found it
            learning stays, beside those that `save_total_limit` keeps.
        keep (`str`, *optional*, defaults to `"last"`):
            best also writes the encoder to best/ of the output folder whenever an evaluation finds it better than
            before, by k-NN accuracy where there are labelled images, else by held-out loss. The result is the last.
        early_stopping (`int`, *optional*):
            End the run after so many evaluations in a row without a new best.
        learning_rate (`float`, *optional*):
            Peak learning rate. Left out, the recipe chooses.
        base_learning_rate (`float`, *optional*):
            Instead of `learning_rate`: its value for 256 samples a step. It grows in proportion to the samples of a
            step, over all processes and accumulation steps, as papers on images state it.
        lr_scheduler_type (`str`, *optional*, defaults to `"linear"`):
            How the learning rate falls after the warm-up: linear, cosine, constant_with_warmup, polynomial and others.
        weight_decay (`float`, *optional*, defaults to `0.01`):
            Weight decay of all but biases and norms.
        bias_rate (`float`, *optional*, defaults to `1.0`):
            Learning rate of biases and of the weights of norms, as a share of that of the others. LARS adapts its
            steps to the length of a matrix, not to theirs.
        layer_decay (`float`, *optional*, defaults to `1.0`):
            Learning rate of each block of the encoder, as a share of that of the block after it: below 1, to continue
            a checkpoint, what lies near the input changes less. 0.65 to 0.8 are usual. Stages count as blocks where
            there are stages.
        patch_embed_rate (`float`, *optional*, defaults to `1.0`):
            Learning rate of what projects the patches of a Vision Transformer, as a share of what it has otherwise.
            0.2 in DINOv2.
        freeze_layers (`int`, *optional*, defaults to `0`):
            To continue a checkpoint: leave so many of its first blocks, and what stands before them, as they are.
        lora_rank (`int`, *optional*):
            To continue a checkpoint: train matrices of this rank beside those of the blocks instead of these (LoRA,
            by peft); all else of the encoder stays as it is. 8 or 16 are usual, with a learning rate some ten times
            as high. What is exported has them merged: a stock encoder.
        weight_decay_end (`float`, *optional*):
            Weight decay at the end of the run, to which it goes along half a cosine. Left out, it stays.
        lanes (`int`, *optional*):
            Parts that the stream of data is dealt to, a multiple of the number of processes: a run can go on with any
            number of processes that divides it. Left out, at least 8 (fewer for small data). Stated when a run begins;
            a run that goes on has those that it began with.
        dataloader_num_workers (`int`, *optional*, defaults to `-1`):
            Processes that prepare data. -1: none on a CPU, beside a GPU one for each core that this process has but
            one, 16 at most. Any number gives the same batches.
    """

    # the fields that `--help` shows, and under which heading
    _help_fields: ClassVar[dict[str, str]] = {
        **dict.fromkeys(
            ("output_dir", "max_steps", "budget_minutes", "epochs", "max_tokens", "resume", "seed",
             "per_device_train_batch_size", "gradient_accumulation_steps", "contrastive_batch_size",
             "precision"), "Run",
        ),
        **dict.fromkeys(
            ("learning_rate", "base_learning_rate", "lr_scheduler_type", "warmup_steps", "optim", "weight_decay",
             "bias_rate", "layer_decay", "patch_embed_rate", "freeze_layers", "lora_rank", "freeze_batch_norm",
             "weight_decay_end", "max_grad_norm"),
            "Optimization",
        ),
        **dict.fromkeys(
            ("logging_steps", "eval_steps", "save_steps", "save_total_limit", "keep", "early_stopping",
             "stop_on_collapse", "report_to", "push_to_hub", "hub_model_id", "hub_private_repo", "hub_license",
             "hub_language"),
            "Log, checkpoints and Hub",
        ),
        **dict.fromkeys(
            ("use_cpu", "cpu_threads", "lanes", "activation_checkpointing", "torch_compile"),
            "Machine",
        ),
    }  # fmt: skip

    # of which one is given, by what they say
    _one_of: ClassVar[dict[str, tuple[str, ...]]] = {
        "how long the run is": ("max_steps", "budget_minutes", "epochs", "max_tokens"),
        "the learning rate": ("learning_rate", "base_learning_rate"),
    }

    kept_warmup_steps: ClassVar[int | None] = None
    # the checkpoint from which the run goes on, once its folder is claimed
    continued_from: ClassVar[Path | None] = None

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    max_tokens: int | None = None
    budget_minutes: float | None = None
    epochs: float | None = None
    resume: str = "auto"
    hub_license: str | None = None
    hub_language: list[str] | None = None
    cpu_threads: int | None = None
    stop_on_collapse: bool = False
    keep: Literal["last", "best"] = "last"
    early_stopping: int | None = None
    lanes: int | None = None

    learning_rate: float | None = None
    base_learning_rate: float | None = None
    bias_rate: float = 1.0
    layer_decay: float = 1.0
    patch_embed_rate: float = 1.0
    freeze_layers: int = 0
    lora_rank: int | None = None
    contrastive_batch_size: int | None = None
    freeze_batch_norm: bool = False
    optim: str = field(
        default=OPTIMIZER,
        metadata={"help": "Optimizer: adamw_torch_fused, sgd, lars (for large batches of images) and many others."},
    )
    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 32
    weight_decay: float = 0.01
    weight_decay_end: float | None = None
    adam_beta2: float = 0.98
    adam_epsilon: float = 1e-6
    warmup_steps: float = field(
        default=0.06, metadata={"help": "Steps over which the learning rate rises; below 1 a share of all steps."}
    )
    eval_strategy: str = "steps"
    eval_steps: float | None = field(
        default=0.1, metadata={"help": "Evaluate every so many steps; below 1 a share of all steps."}
    )
    logging_steps: float = 10
    save_total_limit: int | None = 2
    report_to: None | str | list[str] = field(
        default="tensorboard", metadata={"help": "Tracker: tensorboard, trackio, wandb or none."}
    )
    logging_nan_inf_filter: bool = False
    ddp_find_unused_parameters: bool | None = False
    dataloader_num_workers: int = -1
    hub_strategy: str = "end"
    remove_unused_columns: bool = False
    ignore_data_skip: bool = True

    def __post_init__(self):
        self._refuse_sharding()
        if self.load_best_model_at_end:
            raise UserError(
                "`--load_best_model_at_end` is not for pre-training: there is no split to choose on without "
                "reporting the choice. The last weights are exported; keep more of them with `--save_total_limit`."
            )
        if str(getattr(self.hub_strategy, "value", self.hub_strategy)) not in ("end", "every_save"):
            raise UserError(
                f"`--hub_strategy {self.hub_strategy}` would push optimizer states. Choose end (default) or "
                "every_save."
            )
        if self.epochs is not None and self.epochs <= 0:
            raise UserError(f"`--epochs` is a number of passes over the data, more than 0, got {self.epochs:g}.")
        if self.budget_minutes is not None:
            self._check_budget()
            self.max_steps = ENDLESS
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"`--{name}` must be at least 1, got {getattr(self, name)}.")
        if self.early_stopping is not None and self.early_stopping < 1:
            raise UserError(f"`--early_stopping` is a number of evaluations, at least 1, got {self.early_stopping}.")
        if self.weight_decay_end is not None and (self.weight_decay_end < 0 or self.weight_decay <= 0):
            raise UserError(
                "`--weight_decay_end` is at least 0 and is reached from a `--weight_decay` above 0, got "
                f"{self.weight_decay_end:g} and {self.weight_decay:g}."
            )
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"`--layer_decay` is a factor above 0 and at most 1, got {self.layer_decay:g}.")
        if not self.patch_embed_rate >= 0:
            raise UserError(f"`--patch_embed_rate` is a factor of at least 0, got {self.patch_embed_rate:g}.")
        if self.freeze_layers < 0:
            raise UserError(f"`--freeze_layers` is a number of blocks, at least 0, got {self.freeze_layers}.")
        if self.bias_rate < 0:
            raise UserError(f"`--bias_rate` is a share of the learning rate, at least 0, got {self.bias_rate:g}.")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"`--seed` must be between 0 and {2**32 - 1:,}, got {self.seed}.")
        self.report_to = self.report_to or "none"  # what the command line makes of `--report_to none`
        use_all_cores(self.cpu_threads)
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        if accelerator is None:
            self.use_cpu = True  # Trainer asks for it before it lets a CPU multiply in bf16
        elif accelerator.type == "mps" and not self.use_cpu:
            raise UserError(
                "Evaluations add up in float64, which Apple's GPUs (mps) do not have. Pass `--use_cpu true`."
            )
        if self.dataloader_num_workers < 0:
            on_gpu = torch.cuda.is_available() and not self.use_cpu
            # a core for the training itself; what is prepared on a CPU would take the cores of the training
            self.dataloader_num_workers = (
                min(MOST_WORKERS, max(1, num_cores() // local_world_size() - 1)) if on_gpu else 0
            )
            if on_gpu:
                logger.info(
                    "%d process(es) prepare data beside each GPU: its share of the cores but one, 16 at most. "
                    "`--dataloader_num_workers` sets another number.",
                    self.dataloader_num_workers,
                )
        self._may_choose_precision = self.precision == "auto" and not self.bf16 and not self.fp16
        if not self.bf16 and not self.fp16:
            precision = choose_precision(self.precision, self.use_cpu)
            self.bf16, self.fp16 = precision == "bf16", precision == "fp16"
            if precision == "fp32" and self.tf32 is None and torch.cuda.is_available() and not self.use_cpu:
                logger.info(
                    "Matrix products keep all bits of float32, convolutions those of TF32. `--tf32 true` is several "
                    "times as fast on recent NVIDIA GPUs, `--precision bf16` more."
                )
        optimizer = str(getattr(self.optim, "value", self.optim))
        if optimizer not in (LARS, *(known.value for known in OptimizerNames)):
            raise UserError(
                f"`--optim {optimizer}` is unknown. Choose {OPTIMIZER} (the default), sgd or lars, or "
                "another one that transformers knows."
            )
        self.optim = OptimizerNames.SGD if optimizer == LARS else optimizer
        super().__post_init__()
        use_one_gpu(self)
        if not self.average_tokens_across_devices and self.world_size > 1:
            raise UserError(
                f"`--average_tokens_across_devices false` would divide the gradient by the {self.world_size} "
                "processes once too often: the loss of a step is one mean over what all of them predict. Leave the "
                "flag out."
            )
        if self.lanes is not None and (self.lanes < 1 or self.lanes % self.world_size):
            raise UserError(
                f"`--lanes` must be a multiple of the number of processes, {self.world_size}, got {self.lanes}."
            )
        if optimizer == LARS:
            self.optim = LARS
        if self.contrastive_batch_size is not None:
            self._cut_contrastive_batch()
        if self.base_learning_rate is not None:
            self.scale_learning_rate()
        for tracker in self.report_to:
            _check_tracker(tracker)

    def take_full_precision(self) -> None:
        """Train in fp32 unless the user stated a precision: for a model that this hardware trains faster so."""
        if self._may_choose_precision:
            self.bf16, self.fp16, self.mixed_precision = False, False, "no"

    def get_warmup_steps(self, num_training_steps: int) -> int:
        # those of a run that goes on for longer stay as many as they were
        kept = self.kept_warmup_steps
        return super().get_warmup_steps(num_training_steps) if kept is None else kept

    def set_learning_rate(self, rate: float, per_256_samples: bool = False) -> None:
        """Take a default learning rate; one that is meant for 256 samples a step grows with the batch."""
        if per_256_samples:
            self.base_learning_rate = rate
            self.scale_learning_rate()
        else:
            self.learning_rate = rate

    def scale_learning_rate(self) -> None:
        """Set `learning_rate` from `base_learning_rate` and the samples of a step."""
        scaled = self.base_learning_rate * self.global_batch_size / BASE_BATCH_SIZE
        if self.learning_rate is not None and not math.isclose(self.learning_rate, scaled):
            raise UserError(
                f"`--base_learning_rate {self.base_learning_rate:g}` is a learning rate of {scaled:g} at "
                f"{self.global_batch_size} samples a step, `--learning_rate` says {self.learning_rate:g}. Pass one of "
                "them."
            )
        self.learning_rate = scaled

    def _refuse_sharding(self) -> None:
        """What runs the model in one process alone (probes, health, pictures) would wait for the others."""
        environment = {"--fsdp": "ACCELERATE_USE_FSDP", "--deepspeed": "ACCELERATE_USE_DEEPSPEED"}
        launched = (flag for flag, name in environment.items() if os.environ.get(name, "").lower() == "true")
        flag = next((f"--{name}" for name in ("fsdp", "deepspeed") if getattr(self, name)), next(launched, None))
        if flag is not None:
            raise UserError(
                f"`{flag}` would share the weights out among the processes, and probes, health and pictures run the "
                "model in one of them alone, which would then wait for the others forever. Leave it out (`accelerate "
                "launch` takes it from its config file: use torchrun): torchrun --nproc_per_node N keeps whole "
                "weights on each GPU. To save memory pass `--activation_checkpointing true`, or a smaller "
                "`--per_device_train_batch_size` with more `--gradient_accumulation_steps`."
            )

    def _cut_contrastive_batch(self) -> None:
        """Take as many accumulation steps as a batch that is compared at once has parts."""
        size, at_once = self.contrastive_batch_size, self.per_device_train_batch_size * self.world_size
        if size < 1 or size % at_once:
            nearest = max(round(size / at_once), 1) * at_once
            raise UserError(
                f"`--contrastive_batch_size` is a multiple of the {at_once} samples that all processes embed at once "
                f"(`--per_device_train_batch_size {self.per_device_train_batch_size}`), got {size}. Pass {nearest}."
            )
        if self.gradient_accumulation_steps not in (1, size // at_once):
            raise UserError(
                f"`--contrastive_batch_size {size}` is the batch of a step, and has {size // at_once} parts, "
                f"`--gradient_accumulation_steps` says {self.gradient_accumulation_steps}. Leave that out."
            )
        self.gradient_accumulation_steps = size // at_once

    def _check_budget(self) -> None:
        if not 0.0 < self.budget_minutes < math.inf:
            raise UserError(f"`--budget_minutes` must be more than 0, got {self.budget_minutes:g}.")
        other = next((name for name in ("max_tokens", "epochs") if getattr(self, name) is not None), None)
        if other is not None:
            raise UserError(
                f"`--budget_minutes {self.budget_minutes:g}` and `--{other} {getattr(self, other)}` both say how long "
                "the run is. Pass one of them."
            )
        if self.warmup_steps >= 1:
            raise UserError(
                "With `--budget_minutes` the warm-up is a share of the budget, below 1, got "
                f"`--warmup_steps {self.warmup_steps:g}`."
            )

    @property
    def global_batch_size(self) -> int:
        """Rows of one optimizer step, over processes and accumulation steps."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size

    @property
    def compared_at_once(self) -> int:
        """Rows whose loss may compare them with each other, over processes."""
        return self.contrastive_batch_size or self.per_device_train_batch_size * self.world_size

    def keep_global_batch(self, checkpoint: Path) -> None:
        """Adapt the accumulation steps where the run of `checkpoint` goes on with another number of processes.

        The rows of a step stay as many as they were, and with `base_learning_rate` the learning rate with them.

        Raises:
            UserError: if no number of accumulation steps does that, naming values that work.
        """
        then = checkpoints.read_manifest(checkpoint)
        rows, processes = then["settings"].get("global_batch_size"), then.get("world_size")
        if rows is None or processes in (None, self.world_size) or rows == self.global_batch_size:
            return
        size, now = self.per_device_train_batch_size, self.world_size
        batches = then["settings"].get("batches_per_step")  # of a run whose batches are as large as their cost says
        if batches is not None and batches % now == 0:
            rows = batches * size
        elif batches is not None:
            raise UserError(
                f"The run in {checkpoint.parent} has {batches} batches a step, which {now} processes cannot share "
                f"evenly. {_launch(_processes_that_share(batches, checkpoint))}"
            )
        if rows % (size * now):
            fitting = [number for number in range(1, rows // now + 1) if rows % (number * now) == 0]
            if fitting:
                remedy = f"Pass a `--per_device_train_batch_size` of {', '.join(map(str, fitting))}."
            else:
                remedy = _launch(_processes_that_share(rows, checkpoint))
            raise UserError(
                f"The run in {checkpoint.parent} has {rows} rows a step, which {now} processes with "
                f"`--per_device_train_batch_size {size}` cannot share evenly. {remedy}"
            )
        self.gradient_accumulation_steps = rows // (size * now)
        logger.info(
            "The run goes on with %d process(es) instead of %d: %d accumulation step(s) of %d rows each keep the %d "
            "rows of a step. Methods that compare the rows of a micro-batch see another number of them at once.",
            now, processes, self.gradient_accumulation_steps, size, rows,
        )  # fmt: skip
        if self.base_learning_rate is not None:
            self.learning_rate = None
            self.scale_learning_rate()

    def claim_output_dir(self) -> Path | None:
        """Take `output_dir` for this run and return the checkpoint that it continues from, if there is one.

        Raises:
            UserError: if the folder is in use, not writable, or holds something else, or if `--push_to_hub` cannot
            work.
        """
        if self.process_index == 0:
            checkpoints.claim_output_dir(self.output_dir, self.resume)
            if self.push_to_hub:
                check_push(self)  # here, since tokenizer and model take their time
        if self.world_size > 1:
            dist.barrier()
        checkpoint = checkpoints.find_checkpoint(self.output_dir, self.resume)
        if checkpoint is not None:
            self.keep_global_batch(checkpoint)
        self.continued_from = checkpoint
        return checkpoint


def _processes_that_share(number: int, checkpoint: Path) -> list[int]:
    """How many processes can share so many rows or batches evenly, and the lanes of the run in `checkpoint` too."""
    state = checkpoint / "stream_0.json"
    lanes = json.loads(state.read_text())["plan"]["lanes"] if state.is_file() else number
    return [processes for processes in range(1, number + 1) if number % processes == 0 == lanes % processes]


def _launch(numbers: list[int]) -> str:
    if numbers == [1]:
        return "Launch one process."
    return f"Launch one of {', '.join(map(str, numbers))} processes."


def _check_tracker(name: str) -> None:
    from transformers.integrations import integration_utils

    known = integration_utils.INTEGRATION_TO_CALLBACK
    if name not in known:
        raise UserError(f"`--report_to {name}` is unknown. Choose none or one of {', '.join(sorted(known))}.")
    is_installed = getattr(integration_utils, f"is_{name}_available", lambda: True)
    if not is_installed():
        raise UserError(f"`--report_to {name}` needs a package that is not installed: `pip install {name}`.")
