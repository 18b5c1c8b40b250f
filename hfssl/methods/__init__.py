"""One file = one method. Importing this package registers every method with the Auto classes of transformers."""

from transformers import AutoConfig, AutoModelForPreTraining

from .text.clm import ClmForPreTraining, ClmPreTrainingConfig
from .text.mlm import MlmForPreTraining, MlmPreTrainingConfig


for config_class, model_class in [
    (ClmPreTrainingConfig, ClmForPreTraining),
    (MlmPreTrainingConfig, MlmForPreTraining),
]:
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModelForPreTraining.register(config_class, model_class, exist_ok=True)

__all__ = ["ClmForPreTraining", "ClmPreTrainingConfig", "MlmForPreTraining", "MlmPreTrainingConfig"]
