"""One file = one method. Importing this package registers every method with the Auto classes of transformers."""

from transformers import AutoConfig, AutoModelForPreTraining

from .text.clm import ClmForPreTraining, ClmPreTrainingConfig
from .text.mlm import MlmForPreTraining, MlmPreTrainingConfig
from .vision.byol import ByolForPreTraining, ByolPreTrainingConfig
from .vision.dino import DinoForPreTraining, DinoPreTrainingConfig
from .vision.mae import MaeForPreTraining, MaePreTrainingConfig
from .vision.moco import MocoForPreTraining, MocoPreTrainingConfig
from .vision.simclr import SimclrForPreTraining, SimclrPreTrainingConfig


for config_class, model_class in [
    (ByolPreTrainingConfig, ByolForPreTraining),
    (ClmPreTrainingConfig, ClmForPreTraining),
    (DinoPreTrainingConfig, DinoForPreTraining),
    (MaePreTrainingConfig, MaeForPreTraining),
    (MlmPreTrainingConfig, MlmForPreTraining),
    (MocoPreTrainingConfig, MocoForPreTraining),
    (SimclrPreTrainingConfig, SimclrForPreTraining),
]:
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModelForPreTraining.register(config_class, model_class, exist_ok=True)

__all__ = [
    "ByolForPreTraining",
    "ByolPreTrainingConfig",
    "ClmForPreTraining",
    "ClmPreTrainingConfig",
    "DinoForPreTraining",
    "DinoPreTrainingConfig",
    "MaeForPreTraining",
    "MaePreTrainingConfig",
    "MlmForPreTraining",
    "MlmPreTrainingConfig",
    "MocoForPreTraining",
    "MocoPreTrainingConfig",
    "SimclrForPreTraining",
    "SimclrPreTrainingConfig",
]
