"""DeepCluster: cluster the features of all images, learn to tell the clusters by a view of each image, and again.

Papers: DeepCluster-v2, the baseline of Unsupervised Learning of Visual Features by Contrasting Cluster Assignments,
Caron et al., 2020 (https://huggingface.co/papers/2006.09882, Appendix D), after Deep Clustering for Unsupervised
Learning of Visual Features, Caron et al., 2018 (https://huggingface.co/papers/1807.05520). Reference code:
https://github.com/facebookresearch/swav (main_deepclusterv2.py).

At stated shares of the run a pass over the corpus projects two large crops of every image, and spherical k-means
clusters these, once for each head. The centroids become the prototypes of the head, which no gradient moves; then
every crop of an image, large or small, is to be nearest to the centroid of the image's cluster. What a run goes on
with, the cluster of each image, lies in its checkpoints.

All processes share the pass, by files in the output folder, which all machines have to see. Then one of them clusters,
with a core for each head, and the others wait, for as long as it takes, or until it fails: one core makes 1,000
clusters of 40,000 images in 4 s (AVX-512), which would be 7 minutes for 3,000 of 1.28 million. A run that is killed in
the pass goes on in it; one that is killed in k-means finds all projections and begins k-means again.

The first version (`classifier="linear"`) has no projector: it clusters the whitened principal components of the
encoder's features, and a linear layer on the features, drawn anew with each clustering, learns to tell the clusters.
Images count by the inverse of the size of their cluster, which the paper names as the same as drawing clusters evenly.

Departures from the paper: projections are made for the clustering by a pass of its own, with the weights as they are
and batch norm in evaluation mode, instead of being kept from the training steps of the pass before: that costs a
forward pass over the data each time, and no projection is older than another; centroids are normalised at the end of
k-means and not in each of its iterations. Of the first version: images keep their colours, all crops of an image are
learned, and the moments of the optimizer outlive the linear layer that they are of.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import ModelOutput

from ...errors import UserError
from ...functional.views import View, ViewPreset
from ...losses import at_least_float32, deepcluster_loss, full_precision
from ...modeling.branch import OneBranchModel, VisionBranch, check_two_views, crop_by_crop
from ...modeling.corpus_targets import NO_TARGET, CorpusTargetsMixin, one_core_each, spherical_kmeans, whitened
from ...modeling.distributed import convert_batch_norm
from ...modeling.heads import MlpHead
from ...modeling.method import BenchmarkSettings, LearningRates, Method
from ...modeling.pooling import check_pooling, feature_size
from ...modeling.vision import build_vision_encoder


# Those of SwAV. PIL's blur, which its code used, has no kernel size: as wide as sigma wants it.
_LARGE_VIEW = View(
    scale=(0.14, 1.0), jitter=(0.8, 0.8, 0.8, 0.2), jitter_probability=0.8, grey_probability=0.2, blur_probability=0.5,
    blur_width=None,
)  # fmt: skip
_SMALL_VIEW = View(
    scale=(0.05, 0.14), jitter=(0.8, 0.8, 0.8, 0.2), jitter_probability=0.8, grey_probability=0.2,
    blur_probability=0.5, blur_width=None,
)  # fmt: skip


def _collapse_hints(config: PreTrainedConfig) -> dict[str, str]:
    return {
        "constant": "nearly all images are in one cluster: lower `--learning_rate`, raise `--warmup_steps`, and make "
        f"clusters more often than `num_clusterings={config.num_clusterings}` times a run",
        "few directions": f"`num_prototypes={config.num_prototypes}` clusters hold groups apart, not images: pass "
        f"more, make clusters more often than `num_clusterings={config.num_clusterings}` times a run, or lower "
        "`--learning_rate`",
    }


METHOD = Method(
    title="DeepCluster",
    modality="image",
    views=ViewPreset((_LARGE_VIEW, _LARGE_VIEW), local=_SMALL_VIEW, num_local=6, small_jitter=(0.4, 0.4, 0.4, 0.1)),
    learning_rates=LearningRates(lars=0.3, narrow=1e-3, wide=5e-4, checkpoint=1e-4),
    narrow_heads={"projector_hidden_dim": 512, "num_prototypes": 256},
    # a digit is its brightness: recoloured, views of one are no more alike than two digits
    embedded_views={"digits": {"jitter": (0.0, 0.0, 0.0, 0.0)}},
    collapse_hints=_collapse_hints,
    chance=lambda config, context: {"loss": math.log(config.num_prototypes)},
    benchmark=BenchmarkSettings(short_config={"num_clusterings": 8}, against=()),  # as its recipe
)


@strict
class DeepclusterPreTrainingConfig(PreTrainedConfig):
    r"""
    Configuration of [`DeepclusterForPreTraining`]. The defaults are those of DeepCluster-v2, for 800 epochs of
    ImageNet.

    Args:
        encoder_config (`dict` or [`~transformers.PreTrainedConfig`], *optional*):
            Encoder to pre-train: any model for images that [`~transformers.AutoModel`] knows and that takes crops of
            any size. ResNet-50 when left out.
        pooling (`str`, *optional*):
            The feature that is projected: cls, mean, cls+mean or last4. Left out: cls where the encoder has such a
            token, else mean.
        projector_num_layers (`int`, *optional*, defaults to `2`):
            Linear layers of the projector.
        projector_hidden_dim (`int`, *optional*, defaults to `2048`):
            Width of the projector.
        projector_output_dim (`int`, *optional*, defaults to `128`):
            Size of a projection and of a prototype, which are normalised.
        num_heads (`int`, *optional*, defaults to `3`):
            Clusterings of the same images that are learned at once.
        num_prototypes (`int`, *optional*, defaults to `3000`):
            Clusters of each (K), at least 2, and at most as many as there are images.
        num_clusterings (`int`, *optional*, defaults to `800`):
            How often clusters are made in a run, at its start and then evenly over it: once a pass of 800.
        kmeans_iterations (`int`, *optional*, defaults to `10`):
            Iterations of k-means, at most.
        student_temperature (`float`, *optional*, defaults to `0.1`):
            Divisor of the similarities with the prototypes (τ), above 0.
        classifier (`str`, *optional*, defaults to `"centroids"`):
            What tells clusters: centroids, the second version, or linear, the first: a linear layer on the feature,
            without projector and temperature.
        pca_dim (`int`, *optional*, defaults to `256`):
            Principal components of the features that the first version clusters; fewer where there are not so many.
    """

    model_type = "hfssl_deepcluster"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="resnet")}

    encoder_config: dict | PreTrainedConfig | None = None
    pooling: str | None = None
    projector_num_layers: int = 2
    projector_hidden_dim: int = 2048
    projector_output_dim: int = 128
    num_heads: int = 3
    num_prototypes: int = 3000
    num_clusterings: int = 800
    kmeans_iterations: int = 10
    student_temperature: float = 0.1
    classifier: Literal["centroids", "linear"] = "centroids"
    pca_dim: int = 256

    def validate_temperature(self):
        if not self.student_temperature > 0.0:
            raise ValueError(f"`student_temperature` must be above 0, got {self.student_temperature}.")

    def validate_numbers(self):
        names = ("projector_num_layers", "projector_hidden_dim", "projector_output_dim", "num_heads",
                 "num_clusterings", "kmeans_iterations", "pca_dim")  # fmt: skip
        for name, number in {**dict.fromkeys(names, 1), "num_prototypes": 2}.items():
            if getattr(self, name) < number:
                raise ValueError(f"`{name}` must be at least {number}, got {getattr(self, name)}.")

    def validate_pooling(self):
        if self.pooling is not None:
            check_pooling(self.encoder_config, self.pooling)


@dataclass
class DeepclusterOutput(ModelOutput):
    r"""
    Args:
        loss (`torch.FloatTensor` of shape `()`):
            Cross-entropy, mean over heads, crops and the images that are in a cluster. log(num_prototypes) is chance.
        projections (`torch.FloatTensor` of shape `(num_crops, batch_size, projector_output_dim)`):
            Normalised, of the large crops and then of the small ones; with a linear classifier their features. Left
            out in training mode.
        targets (`torch.LongTensor` of shape `(batch_size, num_heads)`):
            The cluster of each image in each head. Left out in training mode.
    """

    loss: torch.FloatTensor | None = None
    projections: torch.FloatTensor | None = None
    targets: torch.LongTensor | None = None


class DeepclusterForPreTraining(CorpusTargetsMixin, OneBranchModel):
    config_class = DeepclusterPreTrainingConfig
    method = METHOD
    paper = {
        "title": "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
        "id": "2006.09882",
        "citation": "@inproceedings{caron2020unsupervised,\n  title = {Unsupervised Learning of Visual Features by "
        "Contrasting Cluster Assignments},\n  author = {Caron, Mathilde and Misra, Ishan and Mairal, Julien and "
        "Goyal, Priya and Bojanowski, Piotr and Joulin, Armand},\n  booktitle = {NeurIPS},\n  year = {2020}\n}",
    }

    def __init__(self, config: DeepclusterPreTrainingConfig):
        super().__init__(config)
        dim = feature_size(config.encoder_config, config.pooling)
        if config.classifier == "linear":
            projector: nn.Module = nn.Identity()
            self.classifiers = nn.ModuleList(nn.Linear(dim, config.num_prototypes) for _ in range(config.num_heads))
        else:
            projector = MlpHead(
                dim, config.projector_hidden_dim, config.projector_output_dim, config.projector_num_layers, bias=True
            )
            shape = (config.num_heads, config.num_prototypes, config.projector_output_dim)
            self.register_buffer("prototypes", torch.empty(shape))
            # the same in all processes, and DDP would send them around before every forward
            self._ddp_params_and_buffers_to_ignore = ["prototypes"]
        encoder = build_vision_encoder(config.encoder_config)
        self.branch = VisionBranch(encoder, projector, config.encoder_config, config.pooling)
        convert_batch_norm(self)
        self.track_targets()
        self.post_init()

    @torch.no_grad()
    def initialize_weights(self):
        super().initialize_weights()
        if self.config.classifier == "centroids":
            init.normal_(self.prototypes)  # directions at random, until there are clusters
            init.copy_(self.prototypes, F.normalize(self.prototypes, dim=-1))

    def forward(
        self,
        pixel_values: torch.FloatTensor,
        local_pixel_values: torch.FloatTensor | None = None,
        targets: torch.LongTensor | None = None,
        target_weights: torch.FloatTensor | None = None,
        return_loss: bool = True,
    ) -> DeepclusterOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 2, num_channels, height, width)`):
                Two large crops of each image.
            local_pixel_values (`torch.FloatTensor` of shape
                `(batch_size, num_small_crops, num_channels, local_height, local_width)`, *optional*):
                Small crops of each image.
            targets (`torch.LongTensor` of shape `(batch_size, num_heads)`, *optional*):
                The cluster of each image in each head, -100 for none; `SSLTrainer` knows them. Left out in evaluation,
                an image has the cluster that is likeliest for the large crop by which the head clusters.
            target_weights (`torch.FloatTensor` of shape `(batch_size, num_heads)`, *optional*):
                How much each image counts. Left out, all alike.
            return_loss (`bool`, *optional*, defaults to `True`):
                Always `True`; `Trainer` looks for this name before it reports an `eval_loss`.
        """
        check_two_views(pixel_values, "DeepCluster")
        if self.training and targets is None:
            raise UserError(
                "DeepCluster learns the clusters of all images, and the batch does not say which ones its images are "
                "in. Train it with `SSLTrainer` on an `ExactStream`, which makes them; in a loop of your own pass "
                "`targets` of shape (batch_size, num_heads) and call `model.take_targets`."
            )
        batch_size = len(pixel_values)
        crops = [crop_by_crop(each) for each in (pixel_values, local_pixel_values) if each is not None]
        projections = self._project(*crops).unflatten(0, (-1, batch_size))
        logits = self._logits(projections)
        if targets is None:
            targets = torch.stack([each[head % 2].argmax(-1) for head, each in enumerate(logits)], dim=1)
        loss = deepcluster_loss(logits, targets, self._temperature, target_weights)
        if self.training:
            return DeepclusterOutput(loss=loss)
        return DeepclusterOutput(loss=loss, projections=projections, targets=targets)

    @property
    def _temperature(self) -> float:
        return self.config.student_temperature if self.config.classifier == "centroids" else 1.0

    def _project(self, *crops: torch.Tensor) -> torch.Tensor:
        projections = at_least_float32(self.branch(*crops))
        return F.normalize(projections, dim=-1) if self.config.classifier == "centroids" else projections

    def _logits(self, projections: torch.Tensor) -> list[torch.Tensor]:
        """Of each head, `(num_crops, batch_size, num_prototypes)`."""
        if self.config.classifier == "linear":
            return [classifier(projections) for classifier in self.classifiers]
        with full_precision(projections):
            return [F.linear(projections, at_least_float32(centroids)) for centroids in self.prototypes]

    # -- clusters -------------------------------------------------------------------------------------------------

    @property
    def num_target_passes(self) -> int:
        return self.config.num_clusterings

    def corpus_features(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Projections of the large crops, `(batch_size, 2, dim)`."""
        views = [self._project(view) for view in batch["pixel_values"].unbind(1)]
        return {"projections": torch.stack(views, dim=1).half()}

    def make_targets(self, features: dict[str, Any], seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
        projections, config = features["projections"], self.config
        if len(projections) < config.num_prototypes:
            raise UserError(
                f"{len(projections):,} images cannot be in {config.num_prototypes:,} clusters. Pass "
                f"`--num_prototypes {max(len(projections) // 10, 2)}` or fewer, or more data."
            )
        crops = [torch.from_numpy(projections[:, i]).float() for i in range(min(config.num_heads, 2))]
        tensors = {}
        if config.classifier == "linear":
            crops = [torch.from_numpy(whitened(crop.numpy(), config.pca_dim)) for crop in crops]
            generator = torch.Generator().manual_seed(seed)
            for head, layer in enumerate(self.classifiers):
                tensors[f"classifiers.{head}.weight"] = 0.01 * torch.randn(layer.weight.shape, generator=generator)
                tensors[f"classifiers.{head}.bias"] = torch.zeros(layer.bias.shape)
        crops = [F.normalize(crop, dim=-1).numpy() for crop in crops]
        found = one_core_each(
            lambda head: spherical_kmeans(
                crops[head % 2], config.num_prototypes, config.kmeans_iterations, seed + head
            ),
            range(config.num_heads),
        )
        centroids, clusters = ([torch.from_numpy(each) for each in column] for column in zip(*found, strict=True))
        columns = {"targets": torch.stack(clusters, dim=1)}
        if config.classifier == "linear":
            sizes = [torch.bincount(each, minlength=config.num_prototypes) for each in clusters]
            # 1 in the mean over all images
            weights = [len(each) / ((n > 0).sum() * n[each]) for each, n in zip(clusters, sizes, strict=True)]
            columns["target_weights"] = torch.stack(weights, dim=1).float()
        else:
            tensors["prototypes"] = torch.stack(centroids)
        return tuple({name: tensor.cpu().numpy() for name, tensor in each.items()} for each in (columns, tensors))

    def no_targets(self, num_samples: int) -> dict[str, torch.Tensor]:
        shape = num_samples, self.config.num_heads
        columns = {"targets": torch.full(shape, NO_TARGET)}
        if self.config.classifier == "linear":
            columns["target_weights"] = torch.zeros(shape)
        return columns

    # -- health ---------------------------------------------------------------------------------------------------

    def target_margin(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """By how much the loss grows with the clusters of other images: `(batch_size,)`, the mean for each.

        A share of log(num_prototypes), the loss of chance. 0 where all images are in the same. For models in
        evaluation mode.
        """
        output = self(batch["pixel_values"])
        others = deepcluster_loss(self._logits(output.projections), output.targets.roll(1, dims=0), self._temperature)
        share = (others - output.loss) / math.log(self.config.num_prototypes)
        return share.expand(len(batch["pixel_values"]))
