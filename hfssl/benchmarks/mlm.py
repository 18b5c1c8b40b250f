"""Masked language modelling, measured against `transformers`: the contenders of [`~hfssl.benchmarks.base.measure`].

- ours: what `recipes/mlm.py` builds, [`SSLTrainer`] on an [`ExactStream`];
- theirs: what `run_mlm.py` of transformers builds, `Trainer` with `DataCollatorForLanguageModeling` on a mapped data
  set;
- ours in their configuration: the dropout and the attention implementation that theirs has;
- a bare loop around our model and stream, without any trainer.

All read the same file with the same tokenizer and take the same optimizer, learning rate, schedule and clipping.
Logging, evaluation and checkpoints are off on all sides.
"""

import dataclasses
import logging
import tempfile
import time
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch

from ..cli.text.data import TOKENIZER_SAMPLE, TextDataArguments
from ..cli.text.encoders import TextEncoderArguments, text_encoder_config
from ..cli.text.presets import TEXT_PRESETS
from ..data.text.tokenizer import choose_vocab_size, load_tokenizer, require_mask_token, train_tokenizer
from ..errors import UserError
from ..machine import choose_precision, num_cores, use_one_gpu
from ..modeling.tokenizer import table_size
from .arguments import BenchmarkArguments
from .base import Contender, Pace, disturbance, measure, ratio, ratio_line, table
from .training import NOTHING_BESIDE, Timed, train_bare_loop


logger = logging.getLogger(__name__)

# Both sides: BERT's optimizer as `SSLTrainingArguments` has it.
TRAINING = {
    "weight_decay": 0.01, "adam_beta2": 0.98, "adam_epsilon": 1e-6, "max_grad_norm": 1.0, "warmup_steps": 5,
    "optim": "adamw_torch_fused", **NOTHING_BESIDE,
}  # fmt: skip


@dataclass
class MlmBenchmark(BenchmarkArguments):
    r"""
    > Benchmark

    Args:
        against (`str`, *optional*, defaults to `"transformers"`):
            Whom to measure against. none: nobody, only what the trainer costs beside a bare loop (`--bare`).
        encoder (`str`, *optional*, defaults to `"bert-small"`):
            bert-tiny, bert-mini, bert-small, bert-base, modernbert-mini, modernbert-small or a config file.
        attention (`str`, *optional*, defaults to `"auto"`):
            Attention of ours: auto, eager, sdpa, flash_attention_2 or flex_attention.
        batch_size (`int`, *optional*, defaults to `32`):
            Rows a step.
        defaults (`bool`, *optional*, defaults to `False`):
            Each side at the precision that it has by default: ours auto, theirs fp32.
        line_by_line (`bool`, *optional*, defaults to `False`):
            Theirs with one text a row, cut and padded, instead of texts joined to full rows.
        bare (`bool`, *optional*, defaults to `False`):
            Also a bare loop around our model and stream: what the trainer costs.
        learning_rate (`float`, *optional*, defaults to `0.0005`):
            Peak learning rate of all sides.
        steps_per_block (`int`, *optional*, defaults to `10`):
            Steps of a turn.
    """

    against: Literal["transformers", "none"] = "transformers"
    encoder: str = "bert-small"
    attention: str = "auto"
    batch_size: int = 32
    defaults: bool = False
    line_by_line: bool = False
    bare: bool = False
    learning_rate: float = 5e-4
    steps_per_block: int = 10

    def __post_init__(self):
        super().__post_init__()
        self.require(batch_size=1)
        self.require_scratch("encoder", TEXT_PRESETS)
        self.bare = self.bare or self.against == "none"
        if self.defaults and self.precision != "auto":
            raise UserError(
                "`--defaults` compares each side at its own precision, `--precision` sets one for both: leave one of "
                "them out."
            )


def run_mlm_benchmark(arguments: MlmBenchmark, data: TextDataArguments) -> tuple[str, dict[str, Any]]:
    """Prepare corpus and tokenizer, measure, and return what to read and what `--json` prints."""
    threads = arguments.take_threads()
    with tempfile.TemporaryDirectory(prefix="hfssl-benchmark-") as folder:
        prepared = prepare(data, Path(folder))
        sides = contenders(arguments, data, Path(folder))
        figures = measure(
            sides,
            blocks=arguments.blocks,
            steps_per_block=arguments.steps_per_block,
            threads=threads,
            device=arguments.device,
        )
    report = {"method": "mlm", "against": arguments.against, "precision": figures["ours"]["precision"]}
    report |= figures
    if "theirs" in figures:
        report["ratio"] = ratio(figures, "ours", "theirs")
        report["ratio_same_config"] = ratio(figures, "ours_same_config", "theirs")
        report["memory_ratio"] = round(figures["ours"]["peak_mb"] / figures["theirs"]["peak_mb"], 4)
    if "theirs_sparse" in figures:
        report["ratio_sparse"] = ratio(figures, "ours", "theirs_sparse")
    if "bare" in figures:
        report["overhead"] = round(ratio(figures, "bare", "ours") - 1, 4)
    protocol = {"encoder": arguments.encoder, "max_length": data.max_length, "batch_size": arguments.batch_size}
    protocol |= {"line_by_line": arguments.line_by_line, "blocks": arguments.blocks, "threads": threads}
    report |= protocol | {"steps_per_block": arguments.steps_per_block} | prepared
    return _text(arguments, data, report, figures), report


def prepare(data: TextDataArguments, folder: Path) -> dict[str, Any]:
    """Write the corpus as one file and the tokenizer as one folder, for all sides."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from transformers import BertTokenizer

    from ..data.sources import open_source
    from ..data.text.rows import sample_texts

    source = open_source(
        data.dataset,
        column=data.text_column,
        config=data.dataset_config,
        split=data.split,
        sample_by=data.sample_by,
        streaming=data.streaming,
    )
    texts = list(sample_texts(source, TOKENIZER_SAMPLE))
    pq.write_table(pa.table({"text": texts}), folder / "corpus.parquet", row_group_size=2000)
    begin = time.perf_counter()
    if data.tokenizer:
        tokenizer = load_tokenizer(data.tokenizer)
        require_mask_token(tokenizer)
    else:
        characters = sum(map(len, texts))
        logger.info("Training a tokenizer on %s characters …", f"{characters:,}")
        vocab_size = data.vocab_size or choose_vocab_size(characters)
        tokenizer = train_tokenizer(
            texts, vocab_size, lowercase=data.lowercase, strip_accents=data.strip_accents,
            model_max_length=max(512, data.max_length),
        )  # fmt: skip
    learned = len(tokenizer)
    if not data.tokenizer and learned < vocab_size:
        # speed depends on the size of the vocabulary, which a small corpus does not fill
        unused = {f"[unused{i}]": learned + i for i in range(vocab_size - learned)}
        pieces = tokenizer.backend_tokenizer.pre_tokenizer  # breaks what is too long for a word
        tokenizer = BertTokenizer(
            vocab=tokenizer.get_vocab() | unused,
            do_lower_case=data.lowercase,
            strip_accents=data.strip_accents,
            model_max_length=tokenizer.model_max_length,
        )
        tokenizer.backend_tokenizer.pre_tokenizer = pieces
    tokenizer.save_pretrained(folder / "tokenizer")
    return {
        "corpus": source.description,
        "num_texts": len(texts),
        "num_characters": sum(map(len, texts)),
        "vocab_size": table_size(tokenizer),
        "vocab_learned": learned,
        "tokenizer_s": round(time.perf_counter() - begin, 1),
    }


def contenders(arguments: MlmBenchmark, data: TextDataArguments, folder: Path) -> list[Contender]:
    """The sides of this benchmark, in the order of their turns."""
    config = text_encoder_config(arguments.encoder, load_tokenizer(folder / "tokenizer"))
    if config is None:
        raise UserError(f"`--encoder {arguments.encoder}`: there is no such file.")
    ours = choose_precision(arguments.precision, arguments.use_cpu)
    theirs = "fp32" if arguments.defaults else ours
    settings = {"arguments": arguments, "data": data, "folder": str(folder)}
    sides = [Contender("ours", "hfssl", ours, train_ours, settings)]
    if arguments.against == "transformers":
        same = settings | {"same_config": True}
        sides += [
            Contender("theirs", "transformers", theirs, train_theirs, settings),
            Contender("ours_same_config", "hfssl, their config", ours, train_ours, same),
        ]
    if arguments.against == "transformers" and hasattr(config, "sparse_prediction"):
        sparse = {"overrides": {"sparse_prediction": True}}
        sides.append(Contender("theirs_sparse", "transformers, sparse", theirs, train_theirs, settings | sparse))
    if arguments.bare:
        sides.append(Contender("bare", "hfssl, bare loop", ours, train_bare, settings))
    return [dataclasses.replace(side, settings={**side.settings, "precision": side.precision}) for side in sides]


def num_tokens(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Positions of a batch that are not padding."""
    if "sequence_ids" in batch:
        return batch["sequence_ids"].count_nonzero()
    return batch["attention_mask"].sum()


def train_ours(pace: Pace, settings: dict[str, Any]) -> float:
    """`recipes/mlm.py` without its evaluation and its result."""
    from ..training.trainer import SSLTrainer

    class TimedTrainer(Timed, SSLTrainer):
        pass

    args = _our_arguments(pace, settings)
    pace.data_is_readable()
    data, model, stream = _our_parts(args, settings)
    trainer = TimedTrainer(
        pace, num_tokens, model, args, stream, settings=data.settings, processing_class=data.tokenizer
    )
    trainer.train()
    return trainer.flops()


def _our_arguments(pace: Pace, settings: dict[str, Any]) -> Any:
    from ..training.arguments import SSLTrainingArguments

    arguments = settings["arguments"]
    return SSLTrainingArguments(
        output_dir=_new_folder(settings), max_steps=pace.num_steps, seed=arguments.seed, use_cpu=arguments.use_cpu,
        per_device_train_batch_size=arguments.batch_size, learning_rate=arguments.learning_rate,
        precision=settings["precision"], cpu_threads=torch.get_num_threads(), **TRAINING,
    )  # fmt: skip


def _our_parts(args: Any, settings: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Data, model and stream."""
    from ..cli.modality import build_method
    from ..cli.text.data import TextData
    from ..cli.text.encoders import set_attention
    from ..methods.text.mlm import MlmForPreTraining, MlmPreTrainingConfig

    arguments, folder = settings["arguments"], Path(settings["folder"])
    # the same file for all sides; nothing else of how to read it applies any more
    ours = {"dataset": str(folder / "corpus.parquet"), "dataset_config": None, "split": "train", "eval_split": "auto"}
    ours |= {"text_column": "text", "tokenizer": str(folder / "tokenizer"), "streaming": True}
    data = TextData(dataclasses.replace(settings["data"], **ours))
    torch.manual_seed(arguments.seed)
    if settings.get("same_config"):
        config = text_encoder_config(arguments.encoder, data.tokenizer)
        model = MlmForPreTraining(MlmPreTrainingConfig(encoder_config=config))
        set_attention(model, "sdpa", data, args)
    else:
        recipe = TextEncoderArguments(arguments.encoder, arguments.attention)
        model = build_method(MlmForPreTraining, recipe, {}, data, args, set())
    return data, model, data.stream(args, model.config.masking)


def train_bare(pace: Pace, settings: dict[str, Any]) -> float:
    """Our model and stream in the shortest loop that does the same."""
    args = _our_arguments(pace, settings)
    pace.data_is_readable()
    _, model, stream = _our_parts(args, settings)
    return train_bare_loop(pace, num_tokens, model, args, stream)


def train_theirs(pace: Pace, settings: dict[str, Any]) -> float:
    """`examples/pytorch/language-modeling/run_mlm.py` of transformers, training from scratch."""
    from datasets import load_dataset
    from transformers import (
        AutoModelForMaskedLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    class TimedTrainer(Timed, Trainer):
        pass

    arguments, folder, max_length = settings["arguments"], Path(settings["folder"]), settings["data"].max_length
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    args = TrainingArguments(
        output_dir=_new_folder(settings), max_steps=pace.num_steps, seed=arguments.seed,
        use_cpu=arguments.use_cpu or accelerator is None, per_device_train_batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate, bf16=settings["precision"] == "bf16", **TRAINING,
    )  # fmt: skip
    use_one_gpu(args)  # as our side
    set_seed(args.seed)
    pace.data_is_readable()
    file = {"train": str(folder / "corpus.parquet")}
    # a cache of its own: as on the first run on these data
    raw = load_dataset("parquet", data_files=file, cache_dir=_new_folder(settings))["train"]
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    if arguments.line_by_line:

        def tokenize(examples):
            lines = [line for line in examples["text"] if len(line) > 0 and not line.isspace()]
            return tokenizer(
                lines, padding=False, truncation=True, max_length=max_length, return_special_tokens_mask=True
            )

        dataset = raw.map(tokenize, batched=True, remove_columns=["text"])
    else:

        def tokenize(examples):
            return tokenizer(examples["text"], return_special_tokens_mask=True)

        def group_texts(examples):
            joined = {name: list(chain(*rows)) for name, rows in examples.items()}
            total = len(joined["input_ids"]) // max_length * max_length
            return {
                name: [values[i : i + max_length] for i in range(0, total, max_length)]
                for name, values in joined.items()
            }

        dataset = raw.map(tokenize, batched=True, remove_columns=["text"]).map(group_texts, batched=True)
    config = text_encoder_config(arguments.encoder, tokenizer, settings.get("overrides"))
    model = AutoModelForMaskedLM.from_config(config)
    collator = DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm_probability=0.15)
    trainer = TimedTrainer(
        pace, num_tokens, model=model, args=args, train_dataset=dataset, processing_class=tokenizer,
        data_collator=collator,
    )  # fmt: skip
    trainer.train()
    return trainer.flops()


def _new_folder(settings: dict[str, Any]) -> str:
    return tempfile.mkdtemp(dir=settings["folder"])


def _text(arguments: MlmBenchmark, data: TextDataArguments, report: dict[str, Any], figures: dict[str, Any]) -> str:
    mode = "one text a row, padded" if arguments.line_by_line else "texts joined to full rows"
    unused = report["vocab_size"] - report["vocab_learned"]
    made = "as given" if data.tokenizer else f"trained in {report['tokenizer_s']} s"
    if unused:
        made += f", {unused:,} of them unused: the corpus is too small for so many"
    lines = [
        f"Masked language modelling: {arguments.encoder}, {arguments.batch_size} rows of up to {data.max_length} "
        f"tokens, {report['threads']} of {num_cores()} cores.",
        f"Corpus: {report['corpus']}; {report['num_texts']:,} texts, {report['num_characters']:,} characters.",
        f"Tokenizer: {report['vocab_size']:,} entries, {made}.",
        *([f"transformers: Trainer, {mode}."] if "theirs" in figures else []),
        f"In turn, {arguments.blocks} blocks of {arguments.steps_per_block} steps each; medians over the blocks.",
        "",
        table(figures),
        "",
    ]

    for name, one, other, words in [
        ("ratio", "ours", "theirs", "each side with its own defaults of dropout and attention"),
        ("ratio_same_config", "ours_same_config", "theirs", "the same dropout and attention implementation (sdpa)"),
        ("ratio_sparse", "ours", "theirs_sparse", "against theirs with `sparse_prediction`"),
    ]:
        lines += ratio_line(report, figures, name, one, other, words)
    if "memory_ratio" in report:
        lines.append(f"memory_ratio: {report['memory_ratio']:.2f}: peak of the process, hfssl over transformers")
    if "overhead" in report:
        lines.append(f"overhead: {report['overhead']:.1%}: what SSLTrainer takes beside the bare loop")
    lines += ["", "Not comparable, or to be known:", *(f"- {note}" for note in _notes(arguments, figures))]
    return "\n".join(lines)


def _notes(arguments: MlmBenchmark, figures: dict[str, Any]) -> list[str]:
    notes = [
        "FLOPs are counted with torch.utils.flop_counter on one step of each side: of the matrix products that it "
        "really does (ours leaves out the logits that have no label), padding included. A higher utilisation is not a "
        "higher speed.",
        "Peak memory is the resident size of the process, files that it maps included.",
        "The time to the first step is without imports and without the training of the tokenizer. Ours tokenises the "
        "first block in it, transformers the whole corpus (and caches that for a second run).",
    ]
    if "theirs" in figures:
        notes.append("Losses of different sides: other rows, other masks, and dropout on one side only.")
        notes.append(
            "Theirs cuts texts at the row length and drops the rest; ours trains on the rest too."
            if arguments.line_by_line
            else "Theirs joins texts, and attention crosses from one to the next; ours packs them, and it does not."
        )
    if arguments.defaults:
        notes.append("The precisions differ: each side has its default.")
    elif figures["ours"]["precision"] == "bf16" and choose_precision("auto", arguments.use_cpu) != "bf16":
        notes.append("This machine has no native bf16: it is emulated, on all sides.")
    return notes + disturbance(figures)
