"""What `recipes/show_invariance.py` takes."""

from dataclasses import dataclass

from ...errors import UserError


@dataclass
class ShowInvariance:
    r"""
    > Runs

    Args:
        max_steps (`int`, *optional*, defaults to `200`):
            Of each of the two runs, 256 images each.
        seed (`int`, *optional*, defaults to `0`):
            Of both.
        output_dir (`str`, *optional*, defaults to `"outputs/invariance"`):
            For both encoders, as plain transformers loads them.
    """

    max_steps: int = 200
    seed: int = 0
    output_dir: str = "outputs/invariance"

    def __post_init__(self):
        if self.max_steps < 1:
            raise UserError(f"`--max_steps` must be at least 1, got {self.max_steps}.")
