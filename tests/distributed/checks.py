"""What two processes of one run do together. Started once by `torchrun`, for `test_two_processes.py`."""

import json
import logging
import sys
from pathlib import Path

import tiny
import torch
import torch.distributed as dist

from hfssl import SSLTrainer, SSLTrainingArguments
from hfssl.data.stream import ExactStream
from hfssl.data.text_data import TextData, TextDataArguments
from hfssl.evaluation.masked_tokens import MaskedTokenEvaluator


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
        "seeds": seeds(folder / "seeds", rank, world_size),
    }
    result = gradients(folder / "gradients", rank, world_size)
    torch.save(result, folder / f"gradients-{rank}.pt")
    (folder / f"answer-{rank}.json").write_text(json.dumps(answer))
    dist.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
