"""Speech recognition: train the whole encoder to write down what is said, and the same from scratch beside it.

Protocol "ctc", version 3. Stock `AutoModelForCTC`: one linear layer on the encoder, characters, the loss of Graves et
al. (2006), the most likely character of each frame, no language model. Characters are those of the transcripts of
train: in lower case, without signs that are not said. Optimizer and schedule are those of the protocol "finetune",
with 1,000 steps at least. Both sides learn at one rate in all of the model: the loss first falls to that of blanks
alone, and what learns slower stays there for longer. Pre-trained convolutions over samples stay as they are, as in
wav2vec 2.0 (https://huggingface.co/papers/2006.11477). Recordings are taken whole, as their transcripts are: of train,
those that are longer than `max_seconds` are left out; of test, none is. The score is that of the last step on test;
nothing is chosen by looking at it. The recogniser that stays is that of seed 0.
"""

import hashlib
import json
import logging
import tempfile
import unicodedata
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import regex
import torch
import torch.distributed as dist
from transformers import (
    MODEL_FOR_CTC_MAPPING,
    AutoModelForCTC,
    PreTrainedModel,
    ProcessorMixin,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertProcessor,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2Processor,
)

from ...data.audio.collate import batches_by_length
from ...machine import choose_precision, compute_device, process_state
from ...modeling.base import evaluating
from ...modeling.frames import frame_mask
from .. import metrics
from ..cells import Cells
from ..classifier_folder import save_classifier, write_classifier_card
from ..evaluator import EvaluationError, Evaluator, encoder_source, name_of
from ..finetune import MODEL, kept_folder, steps_of, train_whole, what_learns
from ..finetune_rows import readable
from ..finetune_settings import FinetuneSettings
from ..probe_features import ENCODER, RANDOM_INIT
from ..results import Result, command_line, versions, write_results
from .encoder import MOST_SECONDS, make_inputs
from .features import SECONDS_AT_ONCE
from .finetuning import AudioFinetuning, TrainingClips


if TYPE_CHECKING:
    from ...data.labelled import LabelledData

logger = logging.getLogger(__name__)

BLANK, UNKNOWN, SPACE = "[PAD]", "[UNK]", "|"
# Settings that are left out, where they are not those of the protocol "finetune".
_VALUES = {"min_steps": 1000, "learning_rate": 1e-3, "layer_decay": 1.0}
# All but letters, the marks on them, digits, and what is part of a word.
_UNSAID = regex.compile(r"[^\p{L}\p{M}\p{N}'’\s-]+")


def said(text: str) -> str:
    """A transcript as it is learned: in lower case, without punctuation, words one space apart; a letter with its
    accent is one character, however the file writes it (NFC)."""
    text = unicodedata.normalize("NFC", text.lower())
    return " ".join(_UNSAID.sub(" ", text).replace("-", " ").split())


def build_processor(feature_extractor: Any, transcripts: list[str]) -> ProcessorMixin:
    """The stock processor of feature extractor and characters that `AutoProcessor` loads.

    Raises:
        EvaluationError: where no transcript has a character.
    """
    characters = sorted(set("".join(map(said, transcripts))) - {" "})
    if not characters:
        raise EvaluationError("None of the transcripts to learn from has a letter or a digit in it.")
    vocabulary = {token: number for number, token in enumerate([BLANK, UNKNOWN, SPACE, *characters])}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.json"
        path.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        tokenizer = Wav2Vec2CTCTokenizer(
            str(path), pad_token=BLANK, unk_token=UNKNOWN, word_delimiter_token=SPACE, bos_token=None, eos_token=None
        )
    is_bert = isinstance(feature_extractor, SeamlessM4TFeatureExtractor)
    return (Wav2Vec2BertProcessor if is_bert else Wav2Vec2Processor)(feature_extractor, tokenizer)


@dataclass
class CtcEvaluator(Evaluator):
    r"""
    Fine-tunes an encoder to write down speech. The protocol stands at the top of the module.

    Args:
        train, test ([`~hfssl.data.labelled.LabelledData`]):
            Recordings to train and to measure on, of which the names of the classes are the transcripts.
        settings ([`FinetuneSettings`], *optional*):
            Lengths, learning rates and the like.
        precision (`str`, *optional*, defaults to `"auto"`):
            Autocast to bf16 or not; `auto` takes bf16 where the hardware computes in it.
    """

    protocol: ClassVar[str] = "ctc"
    version: ClassVar[int] = 3
    title: ClassVar[str] = "recognition (CTC)"
    primary_metric = "cer"
    greater_is_better: ClassVar[bool] = False

    train: "LabelledData"
    test: "LabelledData"
    settings: FinetuneSettings = field(default_factory=FinetuneSettings)
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    def __call__(
        self,
        encoder: str | Path | PreTrainedModel,
        processor: Any = None,
        *,
        output_dir: str | Path | None = None,
        command: str | None = None,
        name: str | None = None,
    ) -> list[Result]:
        name = name or name_of(encoder)
        state = process_state()
        with encoder_source(encoder, processor) as source:
            keep = self.settings.save_model and output_dir is not None
            run = _CtcRun(self, source, processor, name, output_dir, Path(output_dir) / MODEL if keep else None)
            kinds = [ENCODER, RANDOM_INIT] if self.settings.random_init else [ENCODER]
            todo = [(kind, seed) for seed in range(self.settings.seeds) for kind in kinds]
            scores: dict[str, dict[int, dict[str, float]]] = {kind: {} for kind in kinds}
            for position, (kind, seed) in enumerate(todo, start=1):
                scores[kind][seed] = run.scores(kind, seed, position, len(todo))
        of_seeds = {
            metric: {kind: {seed: each[metric] for seed, each in seeds.items()} for kind, seeds in scores.items()}
            for metric in ("cer", "wer")
        }
        results = [
            Result.from_scores(
                figures.pop(ENCODER), figures, protocol=self.protocol, version=self.version, model=name,
                task=self.test.name, split="test", metric=metric, num_train=len(run.rows), num_eval=len(self.test),
                hyperparameters=run.hyperparameters(), greater_is_better=False, command=command or command_line(),
                versions=versions() | {"device": compute_device().type},
            )
            for metric, figures in of_seeds.items()
        ]  # fmt: skip
        if output_dir is not None and state.is_main_process:
            write_results(Path(output_dir) / "results.json", results)
            if run.model_dir is not None:
                write_classifier_card(run.model_dir, results, encoder=name, task="automatic-speech-recognition")
        return results

    def get_config_dict(self) -> dict[str, Any]:
        return super().get_config_dict() | {"train": self.train.name, "test": self.test.name}


class _CtcRun:
    """The trainings of one evaluation. Scores of finished ones stay on disk, and are not trained for again."""

    def __init__(
        self, evaluator: CtcEvaluator, source: str, processor: Any, name: str, output_dir: Any, model_dir: Path | None
    ):
        from . import MODALITY

        self.defaults = replace(MODALITY.finetune_defaults, values=_VALUES)
        self.settings, self.model_dir = evaluator.settings.filled(self.defaults), model_dir
        self.train, self.test = evaluator.train, evaluator.test
        self.precision = choose_precision(evaluator.precision, use_cpu=process_state().device.type == "cpu")
        self.finetuning = AudioFinetuning(source, processor, self.train, self.test, self.settings)
        self.transcripts = {
            split: [said(str(data.class_names[label])) for label in data.labels]
            for split, data in (("train", self.train), ("test", self.test))
        }
        for split, texts in self.transcripts.items():
            if not any(texts):
                raise EvaluationError(f"None of the transcripts of {split} has a letter or a digit in it.")
        self.processor = build_processor(self.finetuning.processor, self.transcripts["train"])
        self.ids = [self.processor.tokenizer(text).input_ids for text in self.transcripts["train"]]
        self.name, self.cells = name, Cells(output_dir, name)

    @cached_property
    def rows(self) -> np.ndarray:
        """The recordings of train that are learned from: a part of one would not be what its transcript says."""
        most, rate = self.finetuning.most, self.finetuning.encoder.sampling_rate
        clips = self.finetuning.clips("train")
        lengths = clips.lengths
        rows = np.flatnonzero(lengths <= most)
        if not len(rows):
            raise EvaluationError(
                f"All of {len(lengths):,} recordings to learn from are longer than {most / rate:g} s, the shortest "
                f"{lengths.min() / rate:.1f} s: of a part the transcript is not known. Cut them into sentences, or "
                f"raise `--max_seconds` (to {MOST_SECONDS:g} at most)."
            )
        if len(rows) < len(lengths):
            logger.warning(
                "%s of %s recordings to learn from are longer than %g s (`--max_seconds`), and are left out: of a "
                "part the transcript is not known.", f"{len(lengths) - len(rows):,}", f"{len(lengths):,}", most / rate,
            )  # fmt: skip
        return readable(rows, clips.bad)

    def hyperparameters(self) -> dict[str, Any]:
        chosen = self.settings.hyperparameters(self.defaults) | {"precision": self.precision}
        # of a front end without convolutions over samples there are none to freeze
        model_class = MODEL_FOR_CTC_MAPPING.get(type(self.finetuning.encoder.fresh_config()), None)
        frozen = hasattr(model_class, "freeze_feature_encoder")
        return chosen | {"pretrained_convolutions": "frozen" if frozen else "none"}

    def scores(self, kind: str, seed: int, position: int, number: int) -> dict[str, float]:
        parts = [
            CtcEvaluator.version, self.hyperparameters(), *what_learns(self.finetuning, kind, self.settings),
            self.train.fingerprint, self.test.fingerprint,
        ]  # fmt: skip
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
        key = f"ctc/{kind}/{len(self.ids)}-transcripts/seed-{seed}/{digest}"
        title = f"{kind.replace('_', ' ')}, {len(self.ids):,} transcripts, seed {seed}"
        folder = kept_folder(self.model_dir, kind, seed)
        self.cells.forget_unless_saved(key, folder)
        cell = self.cells.run(key, lambda: self._train(kind, seed, title, folder, key, number - position))
        figures = ", ".join(f"{metric} {value:.3f}" for metric, value in cell["metrics"].items())
        logger.info("[%d/%d] %s: %s · %.0f s", position, number, title, figures, cell["seconds"])
        return cell["metrics"]

    def _train(
        self, kind: str, seed: int, title: str, folder: Path | None, key: str, to_come: int
    ) -> dict[str, float]:
        encoder, tokenizer = self.finetuning.encoder, self.processor.tokenizer
        config = encoder.fresh_config()
        config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
        config.bos_token_id = config.eos_token_id = None
        # a transcript that is longer than its recording has frames has no loss, instead of an infinite one
        config.ctc_loss_reduction, config.ctc_zero_infinity = "mean", True
        model = encoder.with_head(AutoModelForCTC, config, seed, kind == RANDOM_INIT, "speech recognition")
        if kind == ENCODER and hasattr(model, "freeze_feature_encoder"):
            model.freeze_feature_encoder()
        trainer = train_whole(
            model, len(self.rows),
            lambda length: TrainingClips(
                self.finetuning.clips("train"), self.ids, self.rows, length, seed, self.finetuning.most
            ),
            Collator(self.finetuning, model), self.settings, self.precision, kind, seed, title,
            # it is said once, in the first
            then=to_come * steps_of(self.settings, len(self.rows)) if seed == 0 and kind == ENCODER else 0,
        )  # fmt: skip
        predictions = self._write_down(trainer.model)
        if folder is not None and process_state().is_main_process:
            save_classifier(folder, trainer.model, self.processor, key)
        references = self.transcripts["test"]
        found = {}
        for metric in ("cer", "wer"):
            found |= metrics.load(metric).compute(predictions=predictions, references=references)
        return found

    def _write_down(self, model: PreTrainedModel) -> list[str]:
        """What a model makes of the test recordings; each process does its share."""
        finetuning, state = self.finetuning, process_state()
        clips = finetuning.clips("test")
        most = SECONDS_AT_ONCE * finetuning.encoder.sampling_rate
        batches = batches_by_length(clips.lengths, most, 32, only_equal=not finetuning.pads_exactly)
        found: dict[int, str] = {}
        with evaluating(model):
            for rows in batches[state.process_index :: state.num_processes]:
                batch = make_inputs(model, finetuning.processor, [clips[row] for row in rows])
                batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
                ids = model(**batch).logits.argmax(-1)
                sound = frame_mask(model, ids.shape[1], batch.get("attention_mask"))
                if sound is not None:
                    ids = torch.where(sound, ids, self.processor.tokenizer.pad_token_id)
                found |= dict(zip(rows.tolist(), self.processor.tokenizer.batch_decode(ids.cpu()), strict=True))
        if state.num_processes > 1:
            shares: list[Any] = [None] * state.num_processes
            dist.all_gather_object(shares, found)
            found = {row: text for share in shares for row, text in share.items()}
        return [said(found[row]) for row in range(len(clips))]


class Collator:
    """Makes batches of waveforms and the characters of their transcripts, -100 behind the last."""

    def __init__(self, finetuning: AudioFinetuning, model: PreTrainedModel):
        self.finetuning, self.model = finetuning, model

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        clips = [item["clip"] for item in items]
        batch = make_inputs(self.model, self.finetuning.processor, clips, self.finetuning.pads_exactly)
        labels = torch.full((len(items), max(1, *(len(item["labels"]) for item in items))), -100)
        for row, item in zip(labels, items, strict=True):
            row[: len(item["labels"])] = torch.tensor(item["labels"], dtype=torch.long)
        return {**batch, "labels": labels}
