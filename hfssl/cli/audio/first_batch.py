"""What a method for sound gets to hear of some recordings, as its recipe would make it, without training."""

from pathlib import Path
from typing import Any

from ...data.audio.contact_sheet import contact_sheet
from ...data.audio.streams import recordings
from ...data.audio.view_sheet import view_sheet
from ...data.audio.views import AudioViewArguments, AudioViews
from ...data.mixtures import parts_of
from ...modeling.base import SSLPreTrainedModel
from ...training.arguments import SSLTrainingArguments
from ..modality import build_method
from .data import AudioData, AudioDataArguments
from .encoders import AudioEncoderArguments, make_processor


def draw_sheet(
    method: type[SSLPreTrainedModel], *flags: Any, given: set[str], output: str, number: int
) -> tuple[int, str]:
    """A sheet of recordings from all over the data of a run, see [`~hfssl.data.audio.contact_sheet.contact_sheet`].

    Args:
        method (`type`):
            [`HubertForPreTraining`] and the like.
        flags:
            What the parser of its recipe gives, in any order.
        given (`set[str]`):
            Names of the flags that the user gave.
        output (`str`):
            Of the picture; a page with players lies beside it.
        number (`int`):
            Recordings, at most.

    Returns:
        `tuple[int, str]`: how many are shown, and what is done to them in words.
    """
    of_kind = {kind: each for each in flags for kind in _KINDS if isinstance(each, kind)}
    recipe, data_args, args, config = (of_kind[kind] for kind in _KINDS)
    data = AudioData(data_args)
    model = build_method(method, recipe, config, data, args, given)
    processor = make_processor(recipe, model)
    # some may be damaged
    found = [named for part in parts_of(data.source) for named in recordings(part.source, 2 * number)]
    names, samples = zip(*found, strict=True) if found else ((), ())
    to_hear = f"\nTo listen to: {Path(output).with_suffix('.html')}"
    view_args = next((each for each in flags if isinstance(each, AudioViewArguments)), None)
    if view_args is not None:
        views = AudioViews(model.encoder.config, view_args, processor)
        return view_sheet(samples, views, output, number, names=names), views.description + to_hear
    format = data.format(model, processor)
    shown = contact_sheet(samples, format, output, number, names=names)
    masking = format.masking
    hidden = "nothing is hidden"
    if masking:
        hidden = f"{masking['mask_ratio']:g} of the frames in spans of {masking['mask_length']}, which may overlap"
    return shown, f"Windows of up to {format.max_seconds:g} s; {hidden}{to_hear}"


_KINDS = (AudioEncoderArguments, AudioDataArguments, SSLTrainingArguments, dict)
