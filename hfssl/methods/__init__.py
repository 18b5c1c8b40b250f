"""One file = one method. Importing this package registers every method with the Auto classes of transformers."""

from transformers import AutoConfig, AutoModelForPreTraining

from ..modeling.base import SSLPreTrainedModel

# one line a method
from .audio.best_rq import BestRqForPreTraining, BestRqPreTrainingConfig
from .audio.cpc import CpcForPreTraining, CpcPreTrainingConfig
from .audio.hubert import HubertForPreTraining, HubertPreTrainingConfig
from .audio.wav2vec2 import Wav2vec2ForPreTraining, Wav2vec2PreTrainingConfig
from .multimodal.clip import ClipForPreTraining, ClipPreTrainingConfig
from .multimodal.siglip import SiglipForPreTraining, SiglipPreTrainingConfig
from .text.clm import ClmForPreTraining, ClmPreTrainingConfig
from .text.mlm import MlmForPreTraining, MlmPreTrainingConfig
from .vision.barlow_twins import BarlowTwinsForPreTraining, BarlowTwinsPreTrainingConfig
from .vision.byol import ByolForPreTraining, ByolPreTrainingConfig
from .vision.deepcluster import DeepclusterForPreTraining, DeepclusterPreTrainingConfig
from .vision.dino import DinoForPreTraining, DinoPreTrainingConfig
from .vision.dinov2 import Dinov2ForPreTraining, Dinov2PreTrainingConfig
from .vision.lejepa import LejepaForPreTraining, LejepaPreTrainingConfig
from .vision.mae import MaeForPreTraining, MaePreTrainingConfig
from .vision.moco import MocoForPreTraining, MocoPreTrainingConfig
from .vision.rotnet import RotnetForPreTraining, RotnetPreTrainingConfig
from .vision.simclr import SimclrForPreTraining, SimclrPreTrainingConfig
from .vision.simsiam import SimsiamForPreTraining, SimsiamPreTrainingConfig
from .vision.swav import SwavForPreTraining, SwavPreTrainingConfig
from .vision.vicreg import VicregForPreTraining, VicregPreTrainingConfig


# Name of a method, as its recipe has it -> its class.
METHODS: dict[str, type[SSLPreTrainedModel]] = {}


def register(model_class: type[SSLPreTrainedModel]) -> None:
    """Let the Auto classes, the recipes and the tests know of a method."""
    config_class = model_class.config_class
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModelForPreTraining.register(config_class, model_class, exist_ok=True)
    METHODS[config_class.model_type.removeprefix("hfssl_")] = model_class


__all__ = sorted(name for name in globals() if name.endswith(("ForPreTraining", "PreTrainingConfig")))
__all__.remove("AutoModelForPreTraining")

for _name in __all__:
    if _name.endswith("ForPreTraining"):
        register(globals()[_name])
