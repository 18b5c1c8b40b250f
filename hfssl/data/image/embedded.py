"""Embedded images, on every machine without a download: drawn letters and characters, and scikit-learn's digits."""


def load_letters(split: str) -> tuple[str, dict[str, list], dict]:
    """The letters as [`~hfssl.data.modality.EmbeddedData`] wants them."""
    import datasets

    from .letters import COLORS, FONTS, LETTERS, letters

    classes = {"label": list(LETTERS), "font": list(FONTS), "color": list(COLORS)}
    features = {"image": datasets.Image()}
    features |= {name: datasets.ClassLabel(names=names) for name, names in classes.items()}
    return f"embedded letters ({split})", letters(split), features


def load_digits(split: str) -> tuple[str, dict[str, list], dict]:
    """The digits as [`~hfssl.data.modality.EmbeddedData`] wants them."""
    import datasets

    from .digits import digits

    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list("0123456789"))}
    return f"embedded digits of scikit-learn ({split})", digits(split), features


def load_characters(split: str) -> tuple[str, dict[str, list], dict]:
    """The characters with their captions as [`~hfssl.data.modality.EmbeddedData`] wants them."""
    import datasets

    from .characters import FAMILIES, GROUNDS, INKS, SCRIPTS, STYLES, characters

    classes = {"label": SCRIPTS, "color": INKS, "ground": GROUNDS, "style": STYLES, "family": FAMILIES}
    features = {"image": datasets.Image(), "caption": datasets.Value("string")}
    features |= {name: datasets.ClassLabel(names=list(names)) for name, names in classes.items()}
    return f"embedded characters ({split})", characters(split), features
