"""What two processes of one run do together. Started once by `torchrun`, for `test_two_processes.py`."""

import json
import logging
import sys
from pathlib import Path

import tiny
import tiny_vision
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hfssl import (
    ByolForPreTraining,
    ByolPreTrainingConfig,
    DinoForPreTraining,
    DinoPreTrainingConfig,
    MaeForPreTraining,
    MaePreTrainingConfig,
    MocoForPreTraining,
    MocoPreTrainingConfig,
    SimclrForPreTraining,
    SimclrPreTrainingConfig,
    SSLTrainer,
    SSLTrainingArguments,
)
from hfssl.cli.text.data import TextData, TextDataArguments
from hfssl.data.stream import ExactStream
from hfssl.evaluation.masked_tokens import MaskedTokenEvaluator
from hfssl.modeling.distributed import all_reduce_with_grad, convert_batch_norm, gather_with_grad


class OneBatch(ExactStream):
    """The same rows in every step, cut into `accumulation` batches on each of `world_size` ranks."""

    def __init__(self, rank=0, world_size=1, accumulation=1):
        like = tiny.stream(32)
        super().__init__(like.source, like.transform, like.collate, 32 // (world_size * accumulation))
        rows = like.make(0, 0).rows
        cuts = []
        for cut in range(accumulation):
            first = (rank * accumulation + cut) * self.batch_size
            cuts.append({name: values[first : first + self.batch_size] for name, values in rows.columns.items()})
        self.cuts = [self.collate(columns) for columns in cuts]

    def __iter__(self):
        while True:
            yield from self.cuts


def arguments(folder, **overrides):
    fields = {
        "output_dir": str(folder), "max_steps": 1, "learning_rate": 0.0, "max_grad_norm": 0.0, "precision": "fp32",
        "report_to": "none", "eval_strategy": "no", "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True,
        "seed": 5, "use_cpu": True,
    }  # fmt: skip
    return SSLTrainingArguments(**{**fields, **overrides})


def gradients(folder, rank=0, world_size=1, accumulation=1):
    """Gradient and logged loss of one step over the same 32 rows, however they are cut."""
    stream = OneBatch(rank, world_size, accumulation)
    args = arguments(
        folder, per_device_train_batch_size=stream.batch_size, gradient_accumulation_steps=accumulation
    )  # fmt: skip
    model, kept = tiny.mlm(), {}
    trainer = SSLTrainer(model, args, stream)
    create_optimizer = trainer.create_optimizer

    def keep(*_):
        kept.update({name: parameter.grad.clone() for name, parameter in model.named_parameters()})

    def create_and_watch(*positional, **named):
        optimizer = create_optimizer(*positional, **named)
        optimizer.register_step_pre_hook(keep)
        return optimizer

    trainer.create_optimizer = create_and_watch
    trainer.train()
    items = [int(batch["masked_positions"].numel()) for batch in stream.cuts]
    return {"gradients": kept, "loss": trainer.state.log_history[0]["loss"], "items": items}


class OneBatchOfPairs(OneBatch):
    """The same rows as pairs, each with a label."""

    def __init__(self, rank=0, world_size=1, accumulation=1):
        super().__init__(rank, world_size, accumulation)
        for cut in self.cuts:
            cut["next_sentence_label"] = cut["input_ids"].sum(1) % 2  # of the row alone
            cut["token_type_ids"] = torch.zeros_like(cut["input_ids"])


def terms(folder, rank=0, world_size=1, accumulation=1):
    """The terms of the loss that are logged of 2 steps together, over 32 pairs, however they are cut."""
    stream = OneBatchOfPairs(rank, world_size, accumulation)
    args = arguments(
        folder, per_device_train_batch_size=stream.batch_size, gradient_accumulation_steps=accumulation, max_steps=2,
        logging_steps=2,
    )  # fmt: skip
    trainer = SSLTrainer(tiny.mlm(seed=3, next_sentence_objective=True), args, stream)
    trainer.train()
    return {name: trainer.state.log_history[0][name] for name in ("loss", "loss_mlm", "loss_nsp")}


def one_pass(args, dataset):
    """The texts that this rank sees in a pass, as tokens."""
    data = TextData(TextDataArguments(dataset=str(dataset), packing=False, vocab_size=150, max_length=64))
    stream = data.stream(args)
    seen = []
    for batch in stream:
        if stream.position["pass"] > 0:
            break
        seen.append(data.tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True))
    return {"seen": seen, "held_out": data.held_out, "position": stream.position}


def evaluator(rank=0, world_size=1):
    texts = tiny.texts(60, seed=1)
    return MaskedTokenEvaluator(
        texts, tiny.tokenizer(), max_length=32, batch_size=4, rank=rank, world_size=world_size
    )  # fmt: skip


def measure(rank=0, world_size=1):
    """Figures that are sums over the ranks."""
    return evaluator(rank, world_size).measure(tiny.mlm(seed=3).eval())


HEAD = {"projector_hidden_dim": 16, "projector_output_dim": 8}
IMAGE_METHODS = {
    "simclr-resnet": (SimclrForPreTraining, SimclrPreTrainingConfig, "resnet", {}),
    "simclr-vit": (SimclrForPreTraining, SimclrPreTrainingConfig, "vit", {}),
    "mae": (MaeForPreTraining, MaePreTrainingConfig, "vit", {}),
    "byol-resnet": (ByolForPreTraining, ByolPreTrainingConfig, "resnet", HEAD),
    "moco-vit": (MocoForPreTraining, MocoPreTrainingConfig, "vit", HEAD),
    "moco-resnet-queue": (MocoForPreTraining, MocoPreTrainingConfig, "resnet", {**HEAD, "queue_size": 50}),
    "dino-vit": (DinoForPreTraining, DinoPreTrainingConfig, "vit", {**HEAD, "num_prototypes": 12, "drop_path_rate": 0.0}),
    "dino-resnet": (DinoForPreTraining, DinoPreTrainingConfig, "resnet", {**HEAD, "num_prototypes": 12}),
    "dino-sinkhorn": (DinoForPreTraining, DinoPreTrainingConfig, "vit", {
        **HEAD, "num_prototypes": 12, "drop_path_rate": 0.0, "projector_batch_norm": True, "centering": "sinkhorn",
    }),
}  # fmt: skip


def image_gradients(name, rank=0, world_size=1):
    """Loss, gradients and buffers of one step of an image method over the same 12 images, wrapped in DDP.

    In float64: what differs then is no rounding.
    """
    model_class, config_class, encoder, settings = IMAGE_METHODS[name]
    torch.manual_seed(0)
    model = model_class(config_class(encoder_config=tiny_vision.ENCODERS[encoder](), **settings)).double().train()
    make = {"mae": tiny_vision.images_with_noise, "dino": tiny_vision.crops}.get(
        name.split("-")[0], tiny_vision.two_views
    )
    batch = make(12)
    batch = {key: values.double().chunk(world_size)[rank] for key, values in batch.items()}
    wrapped = DistributedDataParallel(model) if world_size > 1 else model
    loss = wrapped(**batch).loss
    loss.backward()
    if hasattr(model, "after_optimizer_step"):
        model.after_optimizer_step(0.5)  # moves centre and queue, which are compared as buffers
    total = loss.detach().clone()
    if world_size > 1:
        dist.all_reduce(total)
    return {
        "loss": total / world_size,
        "gradients": {key: p.grad for key, p in model.named_parameters() if p.grad is not None},
        "buffers": dict(model.named_buffers()),
    }


def normalised(dims, rank=0, world_size=1, momentum=0.1):
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


def gathered(rank):
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


def seeds(folder, rank, world_size):
    """The seed of each micro-step on this rank."""
    drawn = []
    model = tiny.mlm(dropout=0.1)
    model.register_forward_pre_hook(lambda *_: drawn.append(torch.initial_seed()))
    args = arguments(folder, max_steps=2, per_device_train_batch_size=8, gradient_accumulation_steps=2)
    SSLTrainer(model, args, tiny.stream(8, rank=rank, world_size=world_size)).train()
    return drawn


def main(folder):
    args = arguments(folder / "out", per_device_train_batch_size=1)
    rank, world_size = args.process_index, args.world_size
    logging.basicConfig(level=logging.WARNING)
    answer = {
        "world_size": world_size,
        "threads": torch.get_num_threads(),
        "few": one_pass(args, folder / "few.jsonl"),
        "many": one_pass(args, folder / "many.jsonl"),
        "measured": measure(rank, world_size),
        "terms": terms(folder / "terms", rank, world_size),
        "seeds": seeds(folder / "seeds", rank, world_size),
    }
    result = gradients(folder / "gradients", rank, world_size)
    result["images"] = {name: image_gradients(name, rank, world_size) for name in IMAGE_METHODS}
    result["norms"] = {
        (dims, momentum): normalised(dims, rank, world_size, momentum)
        for dims in (0, 1, 2)
        for momentum in (0.1, None)
    }
    result["gathered"] = gathered(rank)
    torch.save(result, folder / f"gradients-{rank}.pt")
    (folder / f"answer-{rank}.json").write_text(json.dumps(answer))
    dist.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
