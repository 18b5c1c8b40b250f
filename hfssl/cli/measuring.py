"""Recipes that are given an encoder: the flags of each, what they open, where results go and who is told of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..evaluation.encoder_folder import stock_folder, weights_digest
from ..evaluation.groups import check_groups
from ..evaluation.inside import keep_findings
from ..evaluation.probes import columns_of, parse_protocols
from ..evaluation.results import Result, read_json
from ..machine import process_state
from ..report.card import add_to_card, card_of
from ..report.page import report_safely
from ..report.record import RUN, read_record


@dataclass
class GivenEncoder:
    r"""
    > Encoder

    Args:
        encoder (`str`):
            Folder or Hub id of the encoder and its image processor, feature extractor or tokenizer, or a checkpoint
            of a run; it may stand first, without the name of the flag.
        output_dir (`str`, *optional*):
            Where results go; outputs/<name of this recipe>-<name of the encoder> when left out.
    """

    recipe = ""

    encoder: str
    output_dir: str | None = None

    @property
    def folder(self) -> Path:
        """Where results go."""
        return result_folder(self.recipe, self.encoder, self.output_dir)

    def open(self) -> str:
        """Folder or Hub id that plain transformers loads the encoder from."""
        return stock_folder(self.encoder)

    def tell(self) -> None:
        """Write the report of the results, and say where it is."""
        if (page := report_safely(self.folder)) is not None:
            process_state().print(f"\nReport: {page}")


def result_folder(recipe: str, model: str, output_dir: str | None = None) -> Path:
    """Where the results of a recipe that is given a model go: `output_dir`, else a folder of both names."""
    return Path(output_dir or f"outputs/{recipe}-{Path(model).resolve().name}")


@dataclass
class MeasuredEncoder(GivenEncoder):
    r"""
    > Encoder

    Args:
        beside (`list[str]`, *optional*):
            Other encoders of such samples, in a column each: folders, Hub ids, or checkpoints of runs.
        pooling (`str`, *optional*):
            How one vector is made of the outputs. Images: cls, mean, cls+mean or last4; texts: mean, cls or last;
            recordings: mean, or cls of an AST. Left out: the one that each encoder was trained with, where its folder
            says so, else what fits it.
    """

    beside: list[str] | None = None
    pooling: str | None = None

    def open_beside(self) -> dict[str, str]:
        """Those beside, as [`open`] gives the encoder, by the heads of their columns."""
        return {column: stock_folder(other) for column, other in columns_of(self.beside or ()).items()}


@dataclass
class Figures(MeasuredEncoder):
    r"""
    > Figures

    Args:
        batch_size (`int`, *optional*, defaults to `256`):
            Images, recordings (fewer of long ones), windows of text, or tokens of which each is predicted, a forward
            pass.
        precision (`str`, *optional*, defaults to `"fp32"`):
            Autocast to bf16 or not; auto takes bf16 where the hardware computes in it.
        update_card (`bool`, *optional*, defaults to `False`):
            Write the figures into the card, the results and the report of the encoder's own folder as well.
    """

    batch_size: int = 256
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    update_card: bool = False

    def __post_init__(self):
        # before hours of work: there is a card, and these are the weights that are measured
        if self.update_card:
            card_of(self.encoder)
            self.weights = weights_digest(self.encoder)

    def finish(self, results: Sequence[Result]) -> None:
        """Tell of the results: a report of them, and what `--update_card` asks for."""
        self.tell()
        if self.update_card and process_state().is_main_process:
            process_state().print(f"The figures are in {add_to_card(self.encoder, results, self.weights)} as well")
            report_safely(self.encoder)


@dataclass
class Probe(Figures):
    r"""
    > Probe

    Args:
        protocol (`str`, *optional*, defaults to `"knn,linear,few_shot"`):
            Of knn, linear, few_shot, layers (a linear probe of each layer and of their weighted sum, of recordings),
            label_efficiency, finetune, attentive (of images: one query attends to all patches) and patches (of images
            with masks: segmentation by a linear layer and by k-NN, and how many patches are found again in another
            view), separated by commas.
        patch_image_size (`int`, *optional*):
            Height and width at which the protocol patches shows images, each as a whole. Left out: their own, but at
            least those of the encoder's image processor and at most twice that.
        group_column (`list[str]`, *optional*):
            Columns that say of which group each sample is, such as sex or hospital: accuracy of each group, and the
            gap between them, by k-NN and linear probe. No probe sees them.
    """

    recipe = "probe"

    protocol: str = "knn,linear,few_shot"
    patch_image_size: int | None = None
    group_column: list[str] | None = None

    def __post_init__(self):
        check_groups(self.group_column or (), self.protocols)
        super().__post_init__()

    @property
    def protocols(self) -> list[str]:
        """The names of the protocols."""
        return parse_protocols(self.protocol)


@dataclass(kw_only=True)
class Bias(Figures):
    r"""
    > Bias

    Args:
        dataset (`list[str]`):
            Files, folders or Hub ids of pairs of sentences, of association tests, or of both.
        dataset_config (`str`, *optional*):
            Configuration of a Hub id that has several.
        split (`str`, *optional*, defaults to `"auto"`):
            Split of each. auto takes test, validation or train, the first that is there.
        random_seeds (`int`, *optional*, defaults to `3`):
            How many encoders of the same architecture with random weights stand beside.
    """

    recipe = "bias"

    dataset: list[str]
    dataset_config: str | None = None
    split: str = "auto"
    random_seeds: int = 3

    def hint(self) -> str:
        """What could stand beside, where nothing does: the checkpoint that was continued."""
        came_in = read_json(Path(self.encoder) / RUN, default={}).get("base_model")
        if not came_in or self.beside:
            return ""
        return f"It was continued from {came_in}: `--beside` puts beside it what came in.\n"


@dataclass
class Explain(MeasuredEncoder):
    r"""
    > Explain

    Args:
        dimensions (`list[int]`, *optional*):
            Of the feature, those whose samples are shown. Left out: the 8 that differ most between samples.
        max_samples (`int`, *optional*, defaults to `500`):
            So many samples of each split at most.
        batch_size (`int`, *optional*, defaults to `64`):
            Samples a forward pass.
        update_report (`bool`, *optional*, defaults to `False`):
            Tell it in the report of the encoder's own folder as well.
    """

    recipe = "explain"

    dimensions: list[int] | None = None
    max_samples: int = 500
    batch_size: int = 64
    update_report: bool = False

    def __post_init__(self):
        if self.update_report:
            read_record(self.encoder)  # there is one to tell it in, before minutes of work

    def finish(self) -> None:
        """Tell of the findings: a report of them, and what `--update_report` asks for."""
        self.tell()
        if self.update_report:
            keep_findings(self.folder, self.encoder)
            if (page := report_safely(self.encoder)) is not None:
                process_state().print(f"It is told in {page} as well")


@dataclass
class Finetune(GivenEncoder):
    r"""
    > Encoder

    Args:
        task (`str`, *optional*, defaults to `"classification"`):
            classification, or ctc: write down what is said in recordings, of which there are transcripts.
        precision (`str`, *optional*, defaults to `"auto"`):
            Autocast to bf16 or not; auto takes bf16 where the hardware computes in it.
    """

    recipe = "finetune"

    task: Literal["classification", "ctc"] = "classification"
    precision: Literal["auto", "fp32", "bf16"] = "auto"


@dataclass
class Export(GivenEncoder):
    r"""
    > Export

    Args:
        format (`str`, *optional*, defaults to `"torch_export"`):
            torch_export (encoder.pt2, which `torch.export.load` reads) or onnx (encoder.onnx).
        pooling (`str`, *optional*):
            How one vector is made of the outputs. Images: cls, mean, cls+mean or last4; texts: mean, cls or last;
            recordings: mean, or cls of an AST. Left out: the one that the encoder was trained with, where its folder
            says so, else what fits it.
    """

    recipe = "export"

    format: Literal["torch_export", "onnx"] = "torch_export"
    pooling: str | None = None


@dataclass
class Glue(GivenEncoder):
    """The encoder that `recipes/glue.py` is given, and where its results go."""

    recipe = "glue"
