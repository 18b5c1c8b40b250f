"""Losses of self-supervised learning as pure functions of tensors: no state, no schedule, no communication.

What a loss needs of other processes (negatives) it is given. Softmaxes, norms and squares are made in float32, also
under autocast. One module holds one family; all of their names are here.
"""

from .clustering import deepcluster_loss, swav_codes, swav_loss
from .contrastive import moco_v3_loss, nearest_neighbours, nnclr_loss, nt_xent_loss
from .distillation import byol_loss, cross_view_entropy, dino_loss, simsiam_loss, sinkhorn_targets
from .pairs import clip_loss, siglip_loss
from .patches import gram_loss, ibot_loss, koleo_loss
from .precision import at_least_float32, full_precision
from .reconstruction import mae_loss
from .redundancy import (
    barlow_twins_loss,
    barlow_twins_terms,
    lejepa_terms,
    sigreg_loss,
    vicreg_loss,
    vicreg_terms,
)
from .speech import (
    code_perplexity,
    cpc_loss,
    frame_contrast,
    hubert_loss,
    perplexity_of,
    unit_logits,
    wav2vec2_loss,
)
from .tokens import cross_entropy_sum


__all__ = [
    "at_least_float32",
    "barlow_twins_loss",
    "barlow_twins_terms",
    "byol_loss",
    "clip_loss",
    "code_perplexity",
    "cpc_loss",
    "cross_entropy_sum",
    "cross_view_entropy",
    "deepcluster_loss",
    "dino_loss",
    "frame_contrast",
    "full_precision",
    "gram_loss",
    "hubert_loss",
    "ibot_loss",
    "koleo_loss",
    "lejepa_terms",
    "mae_loss",
    "moco_v3_loss",
    "nearest_neighbours",
    "nnclr_loss",
    "nt_xent_loss",
    "perplexity_of",
    "siglip_loss",
    "sigreg_loss",
    "simsiam_loss",
    "sinkhorn_targets",
    "swav_codes",
    "swav_loss",
    "unit_logits",
    "vicreg_loss",
    "vicreg_terms",
    "wav2vec2_loss",
]
