"""How `recipes/pretrain.py` goes about images with captions."""

from ...data.caption.captions import texts_of
from ...data.held_out import all_samples
from ...data.multimodal.rows import pair_inputs
from ...data.sources import Source
from ..domains import Choice, Domain, batch_for


# Of so many captions, and what sets them apart from labels.
_LOOKED_AT, _WORDS, _DISTINCT = 200, 2.5, 0.5


def choose(num_samples: int, on_cpu: bool) -> Choice:
    """Contrast of both sides."""
    return Choice(
        "clip",
        "contrast of images and captions (CLIP): each image is to find its own caption among those of a batch, which "
        "says more of it than views of the image alone",
        {"per_device_train_batch_size": batch_for(num_samples, 128)},
    )


def why_no_pairs(source: Source) -> str:
    """Labels and file names beside images are no captions."""
    captions = [text for pair in all_samples(source, _LOOKED_AT) for text in texts_of(pair["text"])[:1]]
    if len(captions) < 2:
        return "there are not two images with a caption."
    words = sum(len(caption.split()) for caption in captions) / len(captions)
    if words < _WORDS and len(set(captions)) < _DISTINCT * len(captions):
        return f"what stands beside the images are labels, such as {captions[0]!r}, and no captions."
    return ""


DOMAIN = Domain(
    "multimodal", "images with captions", pair_inputs("image,text"), choose, "image", encoder="image",
    why_not=why_no_pairs,
)  # fmt: skip
