"""A classifier of images around an encoder that transformers has none for, such as DINOv3's or a tower of CLIP."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from ...modeling.base import EXTRAS
from ...modeling.pooling import feature_size, pool_features, pooling_code
from ...modeling.trial import num_channels_of
from .sizes import size_arguments


_USAGE = """\
{imports}from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

encoder, processor = AutoModel.from_pretrained("{{folder}}"), AutoImageProcessor.from_pretrained("{{folder}}")
head = load_file("{{folder}}/extras.safetensors")
{image}outputs = encoder(**processor(image, return_tensors="pt"{given}))
feature = {feature}
scores = feature @ head["classifier.weight"].T + head["classifier.bias"]
encoder.config.id2label[scores.argmax().item()]
"""


_PICTURE = 'image = Image.open("{{example}}").convert("{mode}")\n'
_ARRAY = "# image: an array of bytes ({channels}, height, width)\n"


class EncoderForImageClassification(PreTrainedModel):
    """One linear layer on the feature of an encoder: its CLS token, or the mean of what it ends in.

    Args:
        config (`PreTrainedConfig`):
            Of the encoder, with the names of the classes.
        encoder (`PreTrainedModel`):
            Made by this configuration.
    """

    base_model_prefix = "encoder"
    main_input_name = "pixel_values"
    # whatever the encoder was made with
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True

    def __init__(self, config: PreTrainedConfig, encoder: PreTrainedModel):
        super().__init__(config)
        self.encoder = encoder
        self.classifier = nn.Linear(feature_size(config), config.num_labels)
        nn.init.normal_(self.classifier.weight, std=getattr(config, "initializer_range", 0.02))
        nn.init.zeros_(self.classifier.bias)

    def forward(self, pixel_values: torch.FloatTensor, labels: torch.Tensor | None = None) -> ImageClassifierOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Images.
            labels (`torch.Tensor` of shape `(batch_size,)` or `(batch_size, num_labels)`, *optional*):
                The class of each image, or which classes it has.
        """
        outputs = self.encoder(pixel_values=pixel_values, **size_arguments(self.encoder, *pixel_values.shape[-2:]))
        logits = self.classifier(pool_features(outputs, self.config))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(loss=loss, logits=logits)

    def save_pretrained(self, folder: str | Path, **kwargs) -> None:
        """Write the stock encoder, whose configuration has the names of the classes, and the layer beside it."""
        self.encoder.save_pretrained(folder, **kwargs)
        head = {f"classifier.{name}": tensor.detach().cpu() for name, tensor in self.classifier.state_dict().items()}
        save_file(head, Path(folder) / EXTRAS)

    def usage(self) -> str:
        """For the card: Python that says the class of an `{example}`, by what lies in a `{folder}`."""
        said = {"feature": pooling_code(self.config)[0], "imports": "", "given": ""}
        channels = num_channels_of(self.config)
        if channels in (1, 3):
            mode = "RGB" if channels == 3 else "L"
            said |= {"imports": "from PIL import Image\n", "image": _PICTURE.format(mode=mode)}
        else:
            said |= {"image": _ARRAY.format(channels=channels), "given": ', input_data_format="channels_first"'}
        return _USAGE.format(**said)
