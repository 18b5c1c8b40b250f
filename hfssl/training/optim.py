"""Optimizers that torch lacks, and learning rates that do not all follow one schedule."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..errors import UserError
from ..functional.schedules import budget_schedule
from ..modeling.depth import depths


# In a group of parameters: its learning rate stays at its peak.
_CONSTANT = "constant_rate"
# In the names of the parameters that project patches, the second in those of timm.
_PATCHES = ("patch_embeddings.", "timm_model.patch_embed.")


class Lars(torch.optim.Optimizer):
    r"""
    Layer-wise adaptive rate scaling: momentum SGD whose step in each matrix is a share of the matrix's own norm.

    Paper: Large Batch Training of Convolutional Networks, You et al., 2017 (https://huggingface.co/papers/1708.03888),
    as SimCLR, BYOL, MoCo v3, Barlow Twins and VICReg use it. For a parameter w with gradient g:

        d = g + weight_decay w
        d = d trust_coefficient |w| / |d|    unless one of the norms is 0
        m = momentum m + d
        w = w - learning_rate m

    Parameters of one dimension (biases, weights of norms) get neither weight decay nor the second line. The learning
    rate stands outside of the momentum, as in `torch.optim.SGD`; in SimCLR's code it stands inside, which differs
    while the rate changes.

    Args:
        params (`Iterable`):
            Parameters or groups of them.
        lr (`float`):
            Learning rate. Large: 0.3 for 256 samples a step in SimCLR.
        momentum (`float`, *optional*, defaults to `0.9`):
            Share of the last update that is kept, in [0, 1).
        weight_decay (`float`, *optional*, defaults to `0.0`):
            Added to the gradient, before its norm is taken.
        trust_coefficient (`float`, *optional*, defaults to `0.001`):
            Length of a step at a learning rate of 1, relative to the parameter's norm (η in the paper).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
    ):
        if lr < 0.0 or weight_decay < 0.0 or trust_coefficient <= 0.0 or not 0.0 <= momentum < 1.0:
            raise ValueError(
                "LARS needs lr and weight_decay of at least 0, trust_coefficient above 0 and momentum in [0, 1), got "
                f"{lr}, {weight_decay}, {trust_coefficient} and {momentum}."
            )
        defaults = {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust_coefficient": trust_coefficient,
        }  # fmt: skip
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            steps = [p.grad.clone() for p in params]
            self._adapt([(p, step) for p, step in zip(params, steps, strict=True) if p.ndim > 1], group)
            for p in params:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            momenta = [self.state[p]["momentum_buffer"] for p in params]
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, steps)
            torch._foreach_add_(params, momenta, alpha=-group["lr"])
        return loss

    @staticmethod
    def _adapt(matrices: list[tuple[torch.Tensor, torch.Tensor]], group: dict[str, Any]) -> None:
        if not matrices:
            return
        params, steps = map(list, zip(*matrices, strict=True))
        if group["weight_decay"]:
            torch._foreach_add_(steps, params, alpha=group["weight_decay"])
        for step, w, d in zip(steps, torch._foreach_norm(params), torch._foreach_norm(steps), strict=True):
            # without a look at the numbers, which a GPU would have to wait for
            step.mul_(torch.where((w > 0) & (d > 0), group["trust_coefficient"] * w / d, 1.0))


def lars_options(text: str | None) -> dict[str, float]:
    """The options of [`Lars`] in what the user gave for `--optim_args`, such as `"momentum=0.9"`.

    Raises:
        UserError: where LARS has no such option.
    """
    words = (text or "").replace(" ", "").split(",")
    try:
        options = {name: float(value) for name, value in (word.split("=") for word in words if word)}
    except ValueError:
        options = {str(text): 0.0}
    if not set(options) <= {"momentum", "trust_coefficient"}:
        raise UserError(
            f"`--optim_args {text}` names no option of LARS, which has momentum and trust_coefficient. Pass e.g. "
            "momentum=0.9,trust_coefficient=0.001."
        )
    return options


def set_rates_apart(
    optimizer: torch.optim.Optimizer,
    model: torch.nn.Module,
    method: torch.nn.Module,
    bias_rate: float = 1.0,
    layer_decay: float = 1.0,
    patch_embed_rate: float = 1.0,
) -> None:
    """Give the parameters that have a learning rate of their own groups of their own.

    Args:
        optimizer (`torch.optim.Optimizer`):
            That has made no step yet.
        model (`torch.nn.Module`):
            What it trains: the method, maybe in a wrapper.
        method ([`SSLPreTrainedModel`]):
            Says in `constant_rate` how the names of the parameters begin whose rate stays at its peak; any other model
            has none.
        bias_rate (`float`, *optional*, defaults to 1.0):
            Rate of parameters of one dimension, as a share of that of the others.
        layer_decay (`float`, *optional*, defaults to 1.0):
            Rate of a block of an encoder, as a share of that of the block after it; what stands after the last one,
            and what the method adds to the encoder, has the whole rate.
        patch_embed_rate (`float`, *optional*, defaults to 1.0):
            Rate of what projects the patches of an encoder, as a share of that which it has otherwise.

    Raises:
        UserError: with `patch_embed_rate`, where nothing projects patches.
    """
    prefixes = tuple(getattr(method, _CONSTANT, ()))
    constant = {id(p) for name, p in model.named_parameters() if name.removeprefix("module.").startswith(prefixes)}
    shares = _shares_of_encoders(method, layer_decay, patch_embed_rate)
    for group in list(optimizer.param_groups):
        kinds: dict[tuple[bool, float], list[torch.nn.Parameter]] = {}
        for parameter in group["params"]:
            share = shares.get(id(parameter), 1.0) * (bias_rate if parameter.ndim <= 1 else 1.0)
            kinds.setdefault((id(parameter) in constant, share), []).append(parameter)
        group["params"] = kinds.pop((False, 1.0), [])
        for (is_constant, share), parameters in sorted(kinds.items()):
            more = {_CONSTANT: True} if is_constant else {}
            optimizer.add_param_group({**group, **more, "params": parameters, "lr": group["lr"] * share})


def _shares_of_encoders(method: torch.nn.Module, layer_decay: float, patch_embed_rate: float) -> dict[int, float]:
    """By the id of each parameter of the encoders that learn, the share of the learning rate that it has."""
    shares: dict[int, float] = {}
    if layer_decay == patch_embed_rate == 1.0:
        return shares
    encoders = getattr(method, "trained_encoders", ())
    for encoder in encoders:
        of_name, num_blocks = depths(encoder)
        for name, parameter in encoder.named_parameters():
            shares[id(parameter)] = layer_decay ** (num_blocks + 1 - of_name[name])
            if _projects_patches(name):
                shares[id(parameter)] *= patch_embed_rate
    names = [name for encoder in encoders for name, _ in encoder.named_parameters()]
    if patch_embed_rate != 1.0 and not any(map(_projects_patches, names)):
        raise UserError(
            f"`--patch_embed_rate {patch_embed_rate:g}` is for encoders of patches, such as a vit or a dinov2, and "
            "this one has none. Leave it out."
        )
    return shares


def _projects_patches(name: str) -> bool:
    return any(part in name for part in _PATCHES)


def hold_rates(scheduler: Any) -> None:
    """Let the groups of [`set_rates_apart`] stay at the rate that a new scheduler found them with.

    Raises:
        UserError: if the schedule is none that multiplies a rate.
    """
    groups = [i for i, group in enumerate(scheduler.optimizer.param_groups) if group.get(_CONSTANT)]
    if not groups:
        return
    if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        raise UserError(
            "This method keeps the learning rate of some parameters at its peak, which a schedule that follows a "
            "metric cannot do. Choose another `--lr_scheduler_type`, such as cosine."
        )
    for i in groups:
        scheduler.lr_lambdas[i] = _peak
        scheduler.optimizer.param_groups[i]["lr"] = scheduler._last_lr[i] = scheduler.base_lrs[i]


def _peak(step: int) -> float:
    return 1.0


def clock_scheduler(optimizer: torch.optim.Optimizer, clock: Any, args: Any) -> torch.optim.lr_scheduler.LambdaLR:
    """A schedule by the share of its time that a run has used up.

    Args:
        optimizer (`torch.optim.Optimizer`):
            Whose rates follow it.
        clock ([`~hfssl.training.callbacks.BudgetClock`]):
            Knows the share.
        args ([`~hfssl.training.arguments.SSLTrainingArguments`]):
            Name the curve.
    """
    warmup, kind, options = args.warmup_steps, args.lr_scheduler_type, args.lr_scheduler_kwargs or {}
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda _: budget_schedule(clock.progress, warmup, kind, **options)
    )
