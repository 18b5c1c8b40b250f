"""A stock encoder beside the processor of its samples, as probes and fine-tuning need it: its weights, or new ones."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from ..errors import first_line
from ..modeling.depth import is_bare
from .encoder_folder import check_loaded, load_config, quiet
from .evaluator import EvaluationError, name_of
from .facts import given_name


# fields of a configuration that do not change what a model computes
_INCIDENTAL = ("_name_or_path", "name_or_path", "transformers_version", "dtype", "architectures", "_commit_hash")


class ProcessedEncoder(ABC):
    r"""
    An encoder, checked: that it takes samples of a modality, and that its processor is there.

    Args:
        encoder (`str`, `Path` or [`~transformers.PreTrainedModel`]):
            Folder or Hub id of a stock encoder, or a model; of a pre-training model, its encoder is meant.
        processor (*optional*):
            Processor, where the folder holds none or `encoder` is an object.

    Class attributes:
        processor_words, processor_example (`str`):
            What the processor is called in messages, and how one is made.
        auto_processor, auto_classifier (`type`):
            The classes of transformers that load it, and a classifier of such samples.
        classifies (`str`):
            What the classifier does, in messages.

    Raises:
        EvaluationError: where one of them is missing, damaged, or of another modality.
    """

    processor_words: ClassVar[str]
    processor_example: ClassVar[str]
    auto_processor: ClassVar[type]
    auto_classifier: ClassVar[type]
    classifies: ClassVar[str]

    def __init__(self, encoder: str | Path | PreTrainedModel, processor: Any = None):
        self.model = None
        if isinstance(encoder, (str, Path)):
            self.source, self.name = str(encoder), given_name(encoder)
            self.config = load_config(self.source)
        else:
            self.source = None
            self.name = name_of(encoder)
            # a pre-training model of ours knows which of its modules is the encoder
            model = encoder.encoder if hasattr(encoder, "export_encoder") else encoder
            self.model = model if is_bare(model) else model.base_model
            self.config = self.model.config
        self.check_modality()
        self.processor = processor if processor is not None else self._load_processor()

    @abstractmethod
    def check_modality(self) -> None:
        """Refuse an encoder that takes something else."""

    @abstractmethod
    def try_on_a_sample(self, model: PreTrainedModel) -> None:
        """Refuse a processor that makes what the encoder does not take."""

    def _load_processor(self) -> Any:
        if self.source is None:
            raise EvaluationError(
                f"A {type(self.model).__name__} given as an object needs its {self.processor_words} beside it "
                "(`processor`)."
            )
        try:
            with quiet():
                return self.auto_processor.from_pretrained(self.source)
        except Exception as error:  # a missing or foreign file shows itself in many ways
            raise EvaluationError(
                f"{self.name} has no {self.processor_words} ({first_line(error)}): save the one it was pre-trained "
                f"with beside it, as `processor.save_pretrained(folder)` does, for example {self.processor_example}."
            ) from error

    def load(self) -> PreTrainedModel:
        """The encoder with its weights."""
        if self.model is not None:
            return self.model
        try:
            # a pooler that the checkpoint lacks is drawn at random: always the same one
            with seeded(0), quiet():
                model, info = AutoModel.from_pretrained(self.source, dtype=torch.float32, output_loading_info=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise EvaluationError(f"Cannot load the encoder {self.name}: {first_line(error)}") from error
        check_loaded(self.name, [name for name, _ in model.named_parameters()], info["missing_keys"])
        self.try_on_a_sample(model)
        return model

    def random_init(self, seed: int = 0) -> PreTrainedModel:
        """The architecture with new weights, a pure function of `seed`."""
        with seeded(seed), quiet():
            return AutoModel.from_config(self.fresh_config())

    def classifier(self, class_names: Sequence[str], seed: int, random_init: bool = False) -> PreTrainedModel:
        """The encoder with a new classification head, or its architecture with new weights throughout."""
        config = self.fresh_config()
        config.num_labels = len(class_names)
        config.id2label = dict(enumerate(class_names))
        config.label2id = {name: index for index, name in config.id2label.items()}
        config.problem_type = "single_label_classification"
        return self.with_head(self.auto_classifier, config, seed, random_init, self.classifies)

    def with_head(
        self, auto_class: type, config: PreTrainedConfig, seed: int, random_init: bool, purpose: str
    ) -> PreTrainedModel:
        """A model of `auto_class` with this configuration, on the encoder's weights or on new ones throughout.

        Raises:
            EvaluationError: where transformers has none for the architecture, or its weights do not fit.
        """
        try:
            with seeded(seed), quiet():
                if random_init:
                    return auto_class.from_config(config)
                model, info = auto_class.from_pretrained(
                    self.source, config=config, dtype=torch.float32, output_loading_info=True,
                    ignore_mismatched_sizes=True,
                )  # fmt: skip
        except (OSError, ValueError, RuntimeError) as error:
            raise EvaluationError(
                f'{self.name} is a "{config.model_type}" model that cannot be loaded for {purpose}: '
                f"{first_line(error)}"
            ) from error
        prefix = f"{model.base_model_prefix}."
        names = [name for name, _ in model.named_parameters() if name.startswith(prefix)]
        check_loaded(self.name, names, info["missing_keys"])
        return model

    def digest(self, model: PreTrainedModel) -> str:
        """Changes with the configuration, the weights and the processor."""
        config = {key: value for key, value in self.config.to_dict().items() if key not in _INCIDENTAL}
        processor = {key: value for key, value in self.processor.to_dict().items() if key not in _INCIDENTAL}
        digest = hashlib.sha256(json.dumps([config, processor], sort_keys=True, default=str).encode())
        for name, tensor in sorted(model.state_dict().items()):
            if name.startswith("pooler."):  # drawn at random where pre-training left none, and in no feature
                continue
            tensor = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.view(-1).view(torch.uint8).numpy() if tensor.numel() else b"")
        return digest.hexdigest()

    def fresh_config(self) -> PreTrainedConfig:
        """A copy of the configuration, for a model that is trained."""
        config = type(self.config).from_dict(self.config.to_dict())
        config.dtype = torch.float32  # a checkpoint in bf16 would lose the small updates of fine-tuning
        return config


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw new weights from `seed`, and leave the generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
