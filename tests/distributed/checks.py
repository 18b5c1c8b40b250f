"""What two processes of one run do together, for `test_two_processes.py` and `test_methods.py`.

Each function is asked of both processes (`tests/process_pair.py`), and of one process alone to compare with.
"""

import contract
import tiny
import torch
import torch.distributed as dist
from torch import nn

from hfssl import SSLTrainer, SSLTrainingArguments
from hfssl.cli.text.data import TextData, TextDataArguments
from hfssl.evaluation.masked_tokens import MaskedTokenEvaluator
from hfssl.modeling.distributed import all_reduce_with_grad, convert_batch_norm, gather_with_grad


def arguments(folder, **overrides):
    fields = {
        "output_dir": str(folder), "max_steps": 1, "learning_rate": 0.0, "max_grad_norm": 0.0, "precision": "fp32",
        "report_to": "none", "eval_strategy": "no", "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True,
        "seed": 5, "use_cpu": True,
    }  # fmt: skip
    return SSLTrainingArguments(**{**fields, **overrides})


class Given(SSLTrainer):
    """Trains on batches that are given, instead of on those that a stream draws."""

    def __init__(self, model, args, batches):
        super().__init__(model, args, train_dataset=batches)
        self.batches = batches

    def get_train_dataloader(self):
        return self.batches


def one_step(rank, world_size, folder, method, variant=None, accumulation=1, contrastive=False, settings=None):
    """One step of the trainer over the same 12 samples, however they are cut: loss, gradients, and the model after it.

    In float64: what differs then is no rounding. With `contrastive` all of them are compared, whatever the cut.
    """
    model = contract.build(method, variant, **settings or {}).double()
    torch.manual_seed(1)
    whole = contract.contract(method).batch(12)
    batches = [
        {name: values.double() if values.is_floating_point() else values for name, values in part.items()}
        for part in contract.split(whole, world_size * accumulation)[rank * accumulation : (rank + 1) * accumulation]
    ]
    args = arguments(
        folder, learning_rate=0.1, optim="sgd", warmup_steps=0, lr_scheduler_type="constant", weight_decay=0.0,
        per_device_train_batch_size=12 // (world_size * accumulation), gradient_accumulation_steps=accumulation,
        **({"contrastive_batch_size": 12, "freeze_batch_norm": True} if contrastive else {}),
    )  # fmt: skip
    trainer = Given(model, args, batches)
    gradients = {}
    create_optimizer = trainer.create_optimizer

    def create_and_watch(*positional, **named):
        optimizer = create_optimizer(*positional, **named)
        optimizer.register_step_pre_hook(
            lambda *_: gradients.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        )
        return optimizer

    trainer.create_optimizer = create_and_watch
    trainer.train()
    return {
        "loss": trainer.state.log_history[0]["loss"],
        "gradients": gradients,
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
    }


def terms(rank, world_size, folder, accumulation=1):
    """The terms of the loss that are logged of 2 steps together, over the same 12 pairs, however they are cut."""
    model = tiny.mlm(seed=3, next_sentence_objective=True)
    torch.manual_seed(1)
    whole = contract.contract("MlmForPreTraining").batch(12)
    whole["next_sentence_label"] = whole["input_ids"].sum(1) % 2  # of the row alone
    whole["token_type_ids"] = torch.zeros_like(whole["input_ids"])
    parts = contract.split(whole, world_size * accumulation)[rank * accumulation : (rank + 1) * accumulation]
    args = arguments(
        folder, per_device_train_batch_size=12 // (world_size * accumulation),
        gradient_accumulation_steps=accumulation, max_steps=2, logging_steps=2,
    )  # fmt: skip
    trainer = Given(model, args, parts)
    trainer.train()
    return {name: trainer.state.log_history[0][name] for name in ("loss", "loss_mlm", "loss_nsp")}


def one_pass(rank, world_size, folder, dataset):
    """The texts that this rank sees in a pass, as tokens."""
    args = arguments(folder, per_device_train_batch_size=1)
    data = TextData(TextDataArguments(dataset=str(dataset), packing=False, vocab_size=150, max_length=64))
    stream = data.stream(args)
    seen = [data.tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True) for _, batch in tiny.passes(stream)]
    return {"seen": seen, "held_out": data.held_out, "lanes": stream.own_lanes}


def evaluator(rank, world_size):
    texts = tiny.texts(60, seed=1)
    return MaskedTokenEvaluator(
        texts, tiny.tokenizer(), max_length=32, batch_size=4, rank=rank, world_size=world_size
    )  # fmt: skip


def measure(rank, world_size):
    """Figures that are sums over the ranks."""
    return evaluator(rank, world_size).measure(tiny.mlm(seed=3).eval())


def normalised(rank, world_size, dims, momentum):
    """A batch norm in 3 steps over the same 10 samples: outputs, gradients of inputs and weights, statistics."""
    torch.manual_seed(1)
    norm = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)[dims](4, momentum=momentum)
    nn.init.normal_(norm.weight)
    network = convert_batch_norm(nn.Sequential(norm)) if world_size > 1 else nn.Sequential(norm)
    for _ in range(3):
        inputs = 3.0 + torch.randn(10, 4, *[3] * dims)
        weights = torch.randn_like(inputs)
        # unequal parts, as at the end of a data set
        mine = slice(0, 10) if world_size == 1 else slice(0, 7) if rank == 0 else slice(7, 10)
        inputs = inputs[mine].clone().requires_grad_()
        outputs = network(inputs)
        network.zero_grad()
        (outputs * weights[mine]).sum().backward()
    gradients = [network[0].weight.grad, network[0].bias.grad]
    if world_size > 1:
        for gradient in gradients:
            dist.all_reduce(gradient)
    network.eval()
    return {
        "outputs": outputs.detach(), "inputs": inputs.grad, "gradients": gradients, "state": network.state_dict(),
        "evaluated": network(torch.ones(2, 4, *[3] * dims)).detach(),
    }  # fmt: skip


def gathered(rank, world_size):
    """`gather_with_grad` and `all_reduce_with_grad`, where each rank asks for something else."""
    mine = torch.tensor([[1.0, 2.0], [3.0, 4.0]]) + 10 * rank
    mine.requires_grad_()
    everything = gather_with_grad(mine)
    (everything * (rank + 1) * torch.arange(1.0, 9.0).view(4, 2)).sum().backward()
    number = torch.tensor(float(rank + 1), requires_grad=True)
    total = all_reduce_with_grad(number)
    (total * (rank + 5)).backward()
    return {
        "rows": everything.detach(),
        "gradient": mine.grad,
        "sum": total.item(),
        "sum_gradient": number.grad.item(),
    }


def seeds(rank, world_size, folder):
    """The seed of each micro-step on this rank."""
    drawn = []
    model = tiny.mlm(dropout=0.1)
    model.register_forward_pre_hook(lambda *_: drawn.append(torch.initial_seed()))
    args = arguments(folder, max_steps=2, per_device_train_batch_size=8, gradient_accumulation_steps=2)
    SSLTrainer(model, args, tiny.stream(8, rank=rank, world_size=world_size)).train()
    return drawn
