"""The first batch of a run on pairs, made as the run makes it, without training."""

from pathlib import Path
from typing import Any

import torch

from ...data.image.views import ViewArguments
from ...errors import UserError
from ...evaluation.image.pictures import _grid, _save, _show
from ...evaluation.multimodal.pictures import shown_text
from ...modeling.pairs import PairModel
from ...training.arguments import SSLTrainingArguments
from .data import PairData, PairDataArguments
from .encoders import PairEncoderArguments, build_pair, pair_rows, text_checkpoint
from .probes import PairProbeArguments


def draw_sheet(
    method: type[PairModel],
    recipe: PairEncoderArguments,
    data_args: PairDataArguments,
    view_args: ViewArguments,
    config: dict[str, Any],
    probe_args: PairProbeArguments,
    args: SSLTrainingArguments,
    *,
    given: set[str],
    output: str,
    number: int,
) -> tuple[int, str]:
    """A sheet of the first pairs of a run: the image as the encoder sees it, and the tokens of its caption as text.

    Returns:
        `tuple[int, str]`: how many are shown, and the views in words.

    Raises:
        UserError: for other pairs than of image and text.
    """
    data = PairData(data_args, config["pair"], text_checkpoint(recipe, config["pair"]))
    if data.names != ("image", "text"):
        raise UserError(f"Pairs of image and text are shown, and `--pair` says {','.join(data.names)}. Leave it out.")
    model = build_pair(method, recipe, config, data, view_args, args, given)
    rows, _ = pair_rows(model, recipe, data, view_args, given)
    batch = next(iter(data.stream(args, rows)))
    views = rows.sides["image"]
    number = min(number, len(batch["input_ids"]))
    mean, std = (torch.tensor(values)[:, None, None] for values in (views.mean, views.std))
    images = (batch["pixel_values"][:number].cpu() * std + mean).clamp(0, 1)
    texts = data.tokenizer.batch_decode(batch["input_ids"][:number], skip_special_tokens=True)
    figure, axes = _grid(number, 2, size=1.0)
    figure.set_size_inches(7.0, 0.85 * number)
    for row in range(number):
        _show(axes[row, 0], images[row])
        axes[row, 1].axis("off")
        axes[row, 1].text(
            -0.6, 0.5, shown_text(texts[row], 90), fontsize=7, va="center", transform=axes[row, 1].transAxes
        )
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    _save(figure, Path(output))
    return number, f"{views.description}\ncaptions of at most {rows.sides['text'].max_length} tokens"
