"""How views of an image are drawn, as plain data: what a method says of its views, and what makes them reads."""

from dataclasses import dataclass


@dataclass(frozen=True)
class View:
    """How one view of an image is drawn.

    Args:
        size (`int`, *optional*, defaults to `224`):
            Height and width in pixels.
        scale (`tuple[float, float]`, *optional*, defaults to `(0.08, 1.0)`):
            Share of the area that is cut out.
        ratio (`tuple[float, float]`, *optional*, defaults to `(3 / 4, 4 / 3)`):
            Width / height of what is cut out.
        interpolation (`str`, *optional*, defaults to `"bilinear"`):
            bilinear or bicubic, antialiased.
        flip_probability (`float`, *optional*, defaults to `0.5`):
            Mirrored left to right.
        jitter (`tuple[float, float, float, float]`, *optional*):
            Of brightness, contrast, saturation and hue; 0 leaves one alone.
        jitter_probability, grey_probability, blur_probability (`float`, *optional*, defaults to `0.0`):
            How many views undergo it.
        blur_sigma (`tuple[float, float]`, *optional*, defaults to `(0.1, 2.0)`):
            In pixels.
        blur_width (`float`, *optional*, defaults to `0.1`):
            Width of the blur's kernel as a share of the view. `None`: as wide as sigma wants it.
        solarize_probability (`float`, *optional*, defaults to `0.0`):
            What is at least half bright, inverted.
    """

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"
    flip_probability: float = 0.5
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_probability: float = 0.0
    grey_probability: float = 0.0
    blur_probability: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_width: float | None = 0.1
    solarize_probability: float = 0.0

    def describe(self) -> str:
        """In words, for the log."""
        words = [f"{self.size} pixels of {self.scale[0]:g} to {self.scale[1]:g} of the area ({self.interpolation})"]
        if self.flip_probability:
            words.append(f"mirrored {self.flip_probability:g}")
        if any(self.jitter) and self.jitter_probability:
            strengths = " ".join(f"{strength:g}" for strength in self.jitter)
            words.append(f"jitter {strengths} at {self.jitter_probability:g}")
        for name in ("grey", "blur", "solarize"):
            if probability := getattr(self, f"{name}_probability"):
                words.append(f"{name} {probability:g}")
        return ", ".join(words)


@dataclass(frozen=True)
class ViewPreset:
    """The views of a method.

    Args:
        views (`tuple[View, ...]`):
            Those of full size, as the paper has them at 224 pixels.
        local (`View`, *optional*), num_local (`int`, *optional*, defaults to `0`):
            Smaller ones beside them, and how many.
        small_jitter (`tuple[float, float, float, float]`, *optional*):
            Jitter for images of at most 64 pixels, where practice for CIFAR differs from the paper's.
        has_noise (`bool`, *optional*, defaults to `False`):
            Whether each image comes with a random number for each of its patches, by which a method hides some.
        mask_ratio (`tuple[float, float]`, *optional*):
            Smallest and largest share of the patches that are masked in half of the full-size views, in blocks.
    """

    views: tuple[View, ...]
    local: View | None = None
    num_local: int = 0
    small_jitter: tuple[float, float, float, float] | None = None
    has_noise: bool = False
    mask_ratio: tuple[float, float] | None = None
