"""The end of a run: what was measured, what it looks like, where it lies, what to try next."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..evaluation.masked_tokens import MaskedTokenEvaluator, fill_mask_examples
from ..evaluation.next_sentence import NextSentenceEvaluator
from ..evaluation.next_tokens import NextTokenEvaluator, continuations
from ..evaluation.results import Result
from ..evaluation.token_prediction import TokenPredictionEvaluator
from ..training.checkpoints import STAGING
from ..training.model_card import example_lines
from ..training.trainer import SSLTrainer
from .text.data import TextData


if TYPE_CHECKING:
    from ..data.image.views import Views
    from .image.data import ImageData


def finish_mlm(
    trainer: SSLTrainer, evaluator: MaskedTokenEvaluator, data: TextData, base_model: str | None = None
) -> None:
    """Measure the trained model beside its start and the unigram baseline, write the result folder, and say it all."""
    name = trainer.args.hub_model_id or trainer.args.output_dir
    hidden_size = trainer.accelerator.unwrap_model(trainer.model).config.encoder_config.hidden_size
    _finish(
        trainer, evaluator, data, base_model, "fill-mask",
        examples=lambda model: fill_mask_examples(model, data.tokenizer, data.held_out),
        usage="from transformers import AutoModel, AutoTokenizer, pipeline\n\n"
        f'encoder = AutoModel.from_pretrained("{name}")'
        f"  # last_hidden_state: (batch_size, sequence_length, {hidden_size})\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\nfill = pipeline("fill-mask", "{name}")',
        commands=(
            "python -c \"from transformers import pipeline; print(pipeline('fill-mask', '{folder}')('This is a "
            f"{data.tokenizer.mask_token}.')[0])\"",
            f"accelerate launch recipes/mlm.py --dataset {data.arguments.dataset or 'my_texts/'} --encoder {{folder}} "
            "--output_dir outputs/mlm-2",
            "accelerate launch recipes/glue.py --encoder {folder} --task cola",
        ),
    )  # fmt: skip


def finish_clm(
    trainer: SSLTrainer, evaluator: NextTokenEvaluator, data: TextData, base_model: str | None = None
) -> None:
    """Measure the trained model beside its start and the unigram baseline, write the result folder, and say it all."""
    name = trainer.args.hub_model_id or trainer.args.output_dir
    longest = data.arguments.max_length
    _finish(
        trainer, evaluator, data, base_model, "text-generation",
        examples=lambda model: continuations(model.encoder, data.tokenizer, data.held_out, max_length=longest),
        usage="from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
        f'generate = pipeline("text-generation", "{name}")',
        commands=(
            "python -c \"from transformers import pipeline; "
            "print(pipeline('text-generation', '{folder}')('This is')[0])\"",
            f"accelerate launch recipes/clm.py --dataset {data.arguments.dataset or 'my_texts/'} --encoder {{folder}} "
            "--output_dir outputs/clm-2",
        ),
    )  # fmt: skip


def finish_images(trainer: SSLTrainer, data: "ImageData", views: "Views", base_model: str | None = None) -> None:
    """Measure an image method, write the result folder with its pictures, and say it all.

    Args:
        trainer ([`SSLTrainer`]):
            The run, with the evaluators of [`~hfssl.cli.image.probes.image_evaluators`]; what k-NN was measured on
            while it trained is what the table of probes is made of.
        data ([`~hfssl.cli.image.data.ImageData`]), views ([`~hfssl.data.image.views.Views`]):
            What it was trained on.
        base_model (`str`, *optional*):
            The checkpoint that the run continued.
    """
    from ..evaluation.online_knn import OnlineKnn
    from ..evaluation.probes import probe_table

    evaluator, args = trainer.evaluators[0], trainer.args
    knn = next((each for each in trainer.evaluators if isinstance(each, OnlineKnn)), None)
    measured = _measured(trainer)
    name, output_dir = str(args.hub_model_id or args.output_dir), Path(args.output_dir)
    before = {"before": {"loss": measured[0]["eval_loss"]}} if measured[0]["step"] == 0 else {}
    results = evaluator.results({"loss": measured[-1]["eval_loss"]}, str(output_dir), **before)
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    folder = output_dir / STAGING / "pictures"
    say = trainer.accelerator.print
    line = f"\nHeld-out loss ({results[0].num_eval:,} images): {results[0].value:.4f}"
    line += f", before training {results[0].baselines['before']:.4f}" if before else ""
    contrasted = None
    if model.contrasts_batch:
        contrasted = (args.per_device_train_batch_size * args.world_size, evaluator.batch_size)
        queue = getattr(model.config, "queue_size", 0)
        line += f" ({contrasted[1]:,} images contrasted at once, in training {contrasted[0]:,}"
        line += f"; a queue of {queue:,} beside them)" if queue else ")"
    say(line)
    if knn is not None:
        results += probe_table(
            model, knn.processor, knn.train, knn.test, output_dir=folder, pooling=knn.pooling, name=str(output_dir),
            precision="bf16" if args.bf16 else "fp32",
        )  # fmt: skip
    if not trainer.is_world_process_zero():
        trainer.finish()
        return
    pictures = _pictures(model, evaluator, data, views, folder / "assets")
    with torch.no_grad():
        blank = torch.zeros(1, 3, views.image_size, views.image_size, device=args.device)
        shape = ", ".join(map(str, model.encoder(blank).last_hidden_state.shape[1:]))
    folder = trainer.finish(
        results=results, data=f"{data.source.description}; {views.description}".replace("\n", "; "),
        base_model=base_model, pipeline_tag="image-feature-extraction", pictures=pictures, contrasted=contrasted,
        usage="from transformers import AutoImageProcessor, AutoModel\n\n"
        f'encoder = AutoModel.from_pretrained("{name}")  # last_hidden_state: (batch_size, {shape})\n'
        f'processor = AutoImageProcessor.from_pretrained("{name}")\n'
        'features = encoder(**processor(image, return_tensors="pt")).last_hidden_state',
    )  # fmt: skip
    say(f"\nPictures in {folder}/assets: {', '.join(picture.name for picture, _ in pictures)}")
    method = model.config.model_type.removeprefix("hfssl_")
    pooling = f" --pooling {knn.pooling}" if knn is not None and knn.pooling else ""
    _say_result(
        trainer, folder,
        f"accelerate launch recipes/probe.py --encoder {{folder}} --protocol knn,linear,few_shot{pooling}",
        "accelerate launch recipes/finetune.py --encoder {folder}",
        f"accelerate launch recipes/{method}.py --dataset my_images/ --encoder {{folder}} "
        f"--output_dir outputs/{method}-2",
    )  # fmt: skip


def _pictures(
    model: Any, evaluator: Any, data: "ImageData", views: "Views", folder: Path
) -> Sequence[tuple[Path, str]]:
    """What there is to look at, with what it shows."""
    from ..data.image.contact_sheet import contact_sheet

    captions = {
        "neighbours.png": "Test images, and the training images with the nearest features (green: the same class).",
        "feature_map.png": "Features of the test images, in two dimensions.",
        "patches.png": "What the patches of an image tell apart.",
    }
    pictures = [(folder / name, caption) for name, caption in captions.items() if (folder / name).is_file()]
    if hasattr(model, "reconstruct"):
        from ..evaluation.image.reconstructions import plot_reconstructions

        path = folder / "reconstructions.png"
        device = next(model.parameters()).device
        plot_reconstructions(model, evaluator.batch(device), views.mean, views.std, path)
        pictures.insert(0, (path, "Held-out images, what the encoder saw of them, and the reconstruction."))
    path = folder / "views.png"
    contact_sheet(data.held_out[:6], views, path)
    pictures.append((path, "Held-out images, and views of them as in training."))
    return pictures


def _measured(trainer: SSLTrainer) -> list[dict]:
    """What the evaluators found during the run, the state at its end included."""
    measured = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    if not measured or measured[-1]["step"] != trainer.state.global_step:
        trainer.evaluate()
        measured.append(trainer.state.log_history[-1])
    return measured


def _say_result(trainer: SSLTrainer, folder: Path, *commands: str) -> None:
    say = trainer.accelerator.print
    say(
        f"\nResult: {folder} (loads with plain transformers; the card is {folder}/README.md, the curve "
        f"{folder}/assets/loss.png)\nNext:"
    )
    for command in commands:
        say("  " + command.format(folder=folder))


def _finish(
    trainer: SSLTrainer,
    evaluator: TokenPredictionEvaluator,
    data: TextData,
    base_model: str | None,
    pipeline_tag: str,
    *,
    examples: Callable[[Any], list[dict[str, Any]]],
    usage: str,
    commands: tuple[str, ...],
) -> None:
    measured = _measured(trainer)
    figures = [{name: entry[f"eval_{name}"] for name in evaluator.metrics} for entry in measured]
    if not trainer.is_world_process_zero():
        trainer.finish()
        return
    before = {"before": figures[0]} if measured[0]["step"] == 0 else {}
    results = evaluator.results(figures[-1], str(trainer.args.output_dir), **before)
    pairs = _next_sentence(trainer, measured)
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    with torch.no_grad():
        said = examples(model)
    folder = trainer.finish(
        results=results + pairs, examples=said, data=data.source.description, base_model=base_model,
        pipeline_tag=pipeline_tag, usage=usage,
    )  # fmt: skip
    say = trainer.accelerator.print
    say("\n" + before_and_after(results, len(data.held_out), evaluator.task))
    if before and base_model:
        new = f", with {len(data.new_tokens):,} new words as the means of their pieces" if data.new_tokens else ""
        say(f"  before: the checkpoint as it came ({base_model}){new}")
    if pairs:
        say("\n" + before_and_after(pairs, len(data.held_out), "sentence pairs"))
    if said:
        say("\nOn held-out text:")
    for example in said:
        say("  " + "\n    ".join(example_lines(example)))
    _say_result(trainer, folder, *commands)


def _next_sentence(trainer: SSLTrainer, measured: list[dict]) -> list[Result]:
    """What was measured of next-sentence prediction, where it was trained."""
    results = []
    for evaluator in trainer.evaluators:
        if isinstance(evaluator, NextSentenceEvaluator):
            figures = [{name: entry[f"eval_{name}"] for name in ("nsp_accuracy", "nsp_loss")} for entry in measured]
            before = {"before": figures[0]} if measured[0]["step"] == 0 else {}
            results += evaluator.results(figures[-1], str(trainer.args.output_dir), **before)
    return results


def before_and_after(results: list[Result], num_texts: int, items: str = "masked tokens") -> str:
    """A small table: each metric of the model, before training and of the baseline that knows no context."""
    columns = {"this model": [r.value for r in results]}
    for name in ("before", "unigram", "majority"):
        if name in results[0].baselines:
            columns[name] = [r.baselines[name] for r in results]
    head = f"Held-out {items} ({results[0].num_eval:,} in {num_texts:,} texts)"
    width = max(len(head), 24)
    lines = [head.ljust(width) + "".join(name.rjust(14) for name in columns)]
    for i, result in enumerate(results):
        lines.append(f"  {result.metric}".ljust(width) + "".join(f"{values[i]:14.4f}" for values in columns.values()))
    return "\n".join(lines)
