"""What goes with two encoders of a pair: a tokenizer, an image processor, a feature extractor, two of them."""

from pathlib import Path
from typing import Any


class PairProcessor:
    """The processors of both sides, saved side by side so that `AutoTokenizer`, `AutoImageProcessor` and
    `AutoFeatureExtractor` load them from one folder.

    Args:
        image_processor, tokenizer, feature_extractor (*optional*):
            Two of them. Where an image processor and a feature extractor meet, which are saved under one name, the
            folder of the pair has the first; each encoder's own folder has its own.
    """

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, feature_extractor: Any = None):
        self.image_processor, self.tokenizer, self.feature_extractor = image_processor, tokenizer, feature_extractor

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        """Write both into a folder."""
        for part in (self.tokenizer, self.image_processor or self.feature_extractor):
            if part is not None:
                part.save_pretrained(folder, **kwargs)
