"""The gradient of a batch that does not fit into memory, for losses that compare its samples.

A step has three parts (Gao et al., 2021, https://huggingface.co/papers/2101.06983): all micro-batches are embedded
without a graph; the loss compares all embeddings at once and gives the gradient of each; every micro-batch is embedded
again, now with a graph, through which the gradients of its embeddings go back. Memory is that of a micro-batch, the
time that of one more forward pass, and the gradient is that of the whole batch: what is drawn at random, such as
dropout, is drawn from the seed of the micro-step both times. Of the samples that wait only bytes are kept, as the
stream has them: a micro-batch is made of them when it is embedded.

What makes the embedding of a sample depend on the others of its micro-batch is refused: batch norm in training mode.
So is what is drawn at random where the model is compiled: it would be another draw in the second pass.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput

from ..data.blocks import made
from ..errors import UserError
from ..losses import at_least_float32
from ..modeling.base import SSLPreTrainedModel
from ..modeling.contrast import ContrastMixin


logger = logging.getLogger(__name__)

# Below so many steps it is steps that a run is short of, and not comparisons.
FEW_STEPS = 200


class GradientCache:
    """Embeddings of the micro-batches of a step, and the gradients that the loss of all of them has there.

    Args:
        model ([`SSLPreTrainedModel`]):
            With `embed` and `contrast`, see [`~hfssl.modeling.contrast.ContrastMixin`].
        args ([`~hfssl.training.arguments.SSLTrainingArguments`]):
            The run, which is told what its length means.

    Raises:
        UserError: if it has none, or embeds with batch norm.
    """

    def __init__(self, model: SSLPreTrainedModel, args: Any):
        name = type(model).__name__
        if not isinstance(model, ContrastMixin):
            raise UserError(
                "`--contrastive_batch_size` is for methods that compare the samples of a batch, such as CLIP, SigLIP, "
                f"SimCLR and MoCo, and {name} does not. For a larger step pass `--gradient_accumulation_steps`."
            )
        self.model, self.number, self._replay = model, 0, self.replay
        self.batches: list[dict[str, Any] | None] = []
        self.output: ModelOutput | None = None
        self.gradients: dict[str, list[torch.Tensor]] = {}
        self.of_parameters: list[tuple[nn.Parameter, torch.Tensor]] = []
        _say_steps(args)

    @contextmanager
    def micro_step(self, trainer: Any, number: int) -> Iterator[dict[str, Any]]:
        """Within it, `forward` of the model gives the part of the step's gradient that a micro-batch has, its value.

        Args:
            trainer ([`~hfssl.training.trainer.SSLTrainer`]):
                Knows how inputs get to the device, the precision, and the seed of each micro-step.
            number (`int`):
                Of the micro-batch in `batches`; at the first of them, all are embedded.
        """
        if number == 0:
            self._embed_all(trainer)
        # the same function each time, or what is compiled would be compiled anew
        self.number, self.model.replay = number, self._replay
        try:
            yield made(self.batches[number])
        finally:
            self.model.replay = None
        # nothing of a step is left when the next one is read
        self.batches[number] = None
        if number + 1 == len(self.batches):
            self.output, self.gradients, self.of_parameters = None, {}, []

    def _embed_all(self, trainer: Any) -> None:
        model = self.model.train()
        self._refuse_batch_norm()
        parts: list[dict[str, torch.Tensor]] = []
        with torch.no_grad():
            for number, batch in enumerate(self.batches):
                trainer.seed_micro_step(number)
                inputs = trainer._prepare_inputs(made(batch))
                watched = trainer.args.torch_compile and number == 0
                before = _random_states(trainer.args.device) if watched else []
                with trainer.accelerator.autocast():
                    parts.append(model.embed(**inputs))
                if watched and not all(map(torch.equal, before, _random_states(trainer.args.device))):
                    raise UserError(
                        "With `--contrastive_batch_size` a batch is embedded twice with the same dropout, and what "
                        "`--torch_compile` makes of the model would draw another one the second time. Leave it out, "
                        "or set dropout and the like (`--patch_dropout`, and `hidden_dropout_prob` and its kin in the "
                        "configuration of an encoder) to 0."
                    )
        names = list(parts[0])
        sizes = {name: [len(part[name]) for part in parts] for name in names}
        whole = {name: torch.cat([part.pop(name) for part in parts]) for name in names}
        # what learns is known from a pass with a graph only; what has no use for a gradient gives it to nobody
        leaves = {name: tensor.requires_grad_() for name, tensor in whole.items() if tensor.is_floating_point()}
        parameters = [p for p in model.parameters() if p.requires_grad]
        with trainer.accelerator.autocast():
            output = model.contrast(whole)
        found = torch.autograd.grad(output.loss, [*leaves.values(), *parameters], allow_unused=True)
        of_embeddings = dict(zip(leaves, found, strict=False))
        self.gradients = {
            name: list(gradient.split(sizes[name])) for name, gradient in of_embeddings.items() if gradient is not None
        }
        of_parameters = zip(parameters, found[len(leaves) :], strict=True)
        self.of_parameters = [(p, gradient) for p, gradient in of_parameters if gradient is not None]
        self.output = type(output)(**{name: _detached(value) for name, value in output.items()})

    @torch.compiler.disable
    def replay(self, embeddings: dict[str, torch.Tensor]) -> ModelOutput:
        """The output for a micro-batch: its loss has the value of that of the whole, and the gradient of its part.

        Args:
            embeddings (`dict[str, torch.Tensor]`):
                Those of the micro-batch, with a graph. The trainer takes the mean over micro-batches.
        """
        carried = [
            (tensor * self.gradients[name][self.number].to(tensor.dtype)).sum()
            for name, tensor in embeddings.items()
            if tensor.requires_grad and name in self.gradients
        ]
        # parameters of the loss itself, a share in each part: DDP waits for them in the last one
        share = 1 / len(self.batches)
        carried += [share * (p * gradient).sum() for p, gradient in self.of_parameters]
        carrier = torch.stack([at_least_float32(each) for each in carried]).sum()
        output = type(self.output)(**self.output)
        # zero, but for its gradient
        output["loss"] = self.output.loss + len(self.batches) * (carrier - carrier.detach())
        return output

    def _refuse_batch_norm(self) -> None:
        norms = nn.modules.batchnorm._BatchNorm
        named = self.model.named_modules()
        name = next((name for name, part in named if isinstance(part, norms) and part.training), None)
        if name is not None:
            raise UserError(
                f"With `--contrastive_batch_size` a batch is embedded part by part, and batch norm ({name}) would "
                "make an embedding depend on the others of its part. `--freeze_batch_norm true` keeps its statistics "
                "as they are (those of a checkpoint; from scratch it norms nothing); or choose an encoder and a head "
                "without it."
            )


def _say_steps(args: Any) -> None:
    """How many steps a run has, and would have without the cache: what is short of steps learns less of large batches.

    The rates of the field hardly follow the batch: of CLIP 5e-4 for 32,768 pairs, 1e-3 for 88,000 and for 1,024.
    """
    steps, parts, size = args.max_steps, args.gradient_accumulation_steps, args.contrastive_batch_size
    if args.budget_minutes is not None or steps < 1 or parts < 2:  # by the clock nobody knows how many
        return
    number = f"{steps:,} step{'s' * (steps > 1)}"
    words = (
        f"{number}, each of {size:,} samples that are compared; in batches of {size // parts:,} the same samples "
        f"would be {steps * parts:,} steps."
    )
    if args.base_learning_rate is None:
        words += " The learning rate is not raised for the larger batch (`--learning_rate`)."
    if steps < FEW_STEPS:
        logger.warning(
            "%s So few steps learn less than many small ones: pass more `--max_steps` or `--epochs`, or a smaller "
            "`--contrastive_batch_size`.", words,
        )  # fmt: skip
    else:
        logger.info("%s", words)


def _random_states(device: torch.device) -> list[torch.Tensor]:
    """Of the generators that a forward pass on a device draws from."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value
