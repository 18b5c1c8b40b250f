"""Embedded sound, on every machine without a download: synthetic speech."""


def load_speech(split: str) -> tuple[str, dict[str, list], dict]:
    """The synthetic speech as [`~hfssl.data.modality.EmbeddedData`] wants it."""
    import datasets

    from .speech import SAMPLING_RATE, SPEAKERS, WORDS, speech

    features = {
        "audio": datasets.Audio(sampling_rate=SAMPLING_RATE, decode=False),
        "label": datasets.ClassLabel(names=list(WORDS)),
        "speaker": datasets.ClassLabel(names=list(SPEAKERS)),
        "text": datasets.Value("string"),
    }
    return f"embedded synthetic speech ({split})", speech(split), features
