"""CLIP as open_clip trains it: the other side of [`~hfssl.benchmarks.pairs`] with `--against open_clip`.

Its model and loss, its data set of image files and a table (`CsvDataset`) with its transforms, and its loop
(`open_clip_train/train.py`), where `--accum-freq` is for a batch larger than memory: it embeds all parts without a
graph, then each part again, and compares all for each of them. Tokenizer, optimizer, schedule and clipping are ours.
"""

import itertools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..modeling.pairs import PairModel
from .base import Pace, count_flops_of


def model_settings(model: PairModel) -> dict[str, Any]:
    """The towers of a method around CLIP's own two, in open_clip's words."""
    image, text = (model.config_of(name) for name in model.names)
    return {
        "embed_dim": model.config.projection_dim, "quick_gelu": image.hidden_act == "quick_gelu",
        "vision_cfg": {
            "layers": image.num_hidden_layers, "width": image.hidden_size, "patch_size": image.patch_size,
            "head_width": image.hidden_size // image.num_attention_heads, "image_size": image.image_size,
            "mlp_ratio": image.intermediate_size / image.hidden_size,
        },
        "text_cfg": {
            "layers": text.num_hidden_layers, "width": text.hidden_size, "heads": text.num_attention_heads,
            "context_length": text.max_position_embeddings, "vocab_size": text.vocab_size,
            "mlp_ratio": text.intermediate_size / text.hidden_size, "pool_type": "eos", "eos_id": text.eos_token_id,
        },
    }  # fmt: skip


class _Pairs(torch.utils.data.Dataset):
    """Image files and captions of a table."""

    def __init__(self, table: Path, transforms: Callable, tokenize: Callable):
        self.rows = [json.loads(line) for line in table.read_text().splitlines()]
        self.transforms, self.tokenize = transforms, tokenize

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        row = self.rows[index]
        return self.transforms(Image.open(row["image_path"])), self.tokenize([row["caption"]])[0]


def train(pace: Pace, settings: dict[str, Any]) -> float:
    """Train, and return the FLOPs of a pair."""
    from open_clip import CLIP, ClipLoss, image_transform
    from transformers import AutoTokenizer, get_linear_schedule_with_warmup

    folder, training = Path(settings["folder"]), settings["training"]
    on_gpu = torch.cuda.is_available() and not settings["use_cpu"]
    device, batch_size = torch.device("cuda" if on_gpu else "cpu"), settings["batch_size"]
    pace.data_is_readable()
    torch.manual_seed(settings["seed"])
    model = CLIP(**settings["open_clip"], output_dict=True).to(device).train()
    loss_of, tokenizer = ClipLoss(), AutoTokenizer.from_pretrained(folder / "stock")
    transforms = image_transform(settings["image_size"], True, settings["mean"], settings["std"])

    def tokenize(texts: list[str]) -> torch.Tensor:
        options = {"max_length": settings["max_length"], "padding": "max_length", "truncation": True}
        return tokenizer(texts, **options, return_tensors="pt")["input_ids"]

    data = _Pairs(folder / "train.json", transforms, tokenize)
    loader = torch.utils.data.DataLoader(
        data, batch_size, shuffle=True, drop_last=True, num_workers=settings["num_workers"], pin_memory=on_gpu
    )
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    decayed = {p for name, p in model.named_parameters() if p.ndim > 1 and "bias" not in name and "ln" not in name}
    groups = [
        {"params": [p for p in model.parameters() if (p in decayed) == is_decayed], "weight_decay": decay}
        for is_decayed, decay in ((True, training["weight_decay"]), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(
        groups,
        settings["learning_rate"],
        betas=(0.9, training["adam_beta2"]),
        eps=training["adam_epsilon"],
        fused=True,
    )
    schedule = get_linear_schedule_with_warmup(optimizer, training["warmup_steps"], pace.num_steps)

    def embed(batch: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=settings["precision"] == "bf16"):
            return model(*batch)

    def loss(out: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=settings["precision"] == "bf16"):
            return loss_of(**out)

    def fetch() -> list[torch.Tensor]:
        begin, mark = time.perf_counter(), pace.mark()
        images, texts = next(batches)
        pace.fetched(time.perf_counter() - begin, len(images), len(images), (mark, pace.mark()))
        return [images.to(device, non_blocking=True), texts.to(device, non_blocking=True)]

    parts = (settings["contrastive_batch_size"] or batch_size) // batch_size
    for _ in range(pace.num_steps):
        optimizer.zero_grad()
        if parts == 1:
            batch = fetch()
            found = loss(embed(batch))
            found.backward()
        else:
            accumulated, cached = [], {"image_features": [], "text_features": []}
            for _ in range(parts):
                accumulated.append(batch := fetch())
                with torch.no_grad():
                    out = embed(batch)
                for name, features in cached.items():
                    features.append(out[name])
            for part, batch in enumerate(accumulated):
                out = embed(batch)
                for name, features in cached.items():
                    out[name] = torch.cat([*features[:part], out[name], *features[part + 1 :]])
                found = loss(out)
                found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training["max_grad_norm"])
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        pace.stepped(found)
    return count_flops_of(lambda: loss(embed(batch))) / batch_size
