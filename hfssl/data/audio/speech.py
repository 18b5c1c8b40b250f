"""Synthetic speech: spoken words that are computed, whose labels a network has to learn, without a download.

A formant synthesiser. A voice is a train of glottal pulses of a pitch, and breath; a vowel is what four resonances
make of it, which glide from one to the next; a consonant is a burst or a hiss of noise in a band of its own before the
vowel. A word is three syllables, and each set of three makes six words, one for each order: what sets words apart is
not which sounds there are but when, of which averages over time, such as statistics of MFCC, know less. Speakers
differ in pitch, in the length of the vocal tract, by which all resonances move together, in breath and in tilt. Speed,
melody, loudness, place in the recording and the noise behind it are drawn for each recording.
"""

import io
from itertools import permutations

import numpy as np

from ...functional import keyed
from ...functional.keyed import Use
from ..cache import cached_columns
from .decode import libsndfile


# Part of the name of the cache: raise it when other sounds are made than before.
FORMAT_VERSION = 1

SAMPLING_RATE = 16_000
_SETS = (("ba", "di", "gu"), ("sa", "to", "fi"), ("de", "bu", "so"), ("ga", "ti", "fu"))
WORDS = tuple("".join(order) for syllables in _SETS for order in permutations(syllables))
NUM_RECORDINGS = {"train": 2_400, "test": 480}

# Hz of the first four resonances of an adult's vocal tract, after the usual tables.
_VOWELS = {
    "a": (730, 1190, 2440, 3500), "e": (480, 1950, 2600, 3600), "i": (280, 2250, 2950, 3700),
    "o": (460, 850, 2450, 3400), "u": (320, 900, 2300, 3300),
}  # fmt: skip
_BANDWIDTHS = (80.0, 100.0, 140.0, 220.0)
# Of a consonant: middle and width (Hz) of its band of noise, seconds that it lasts, its loudness beside a vowel, and
# whether the voice goes on under it.
_CONSONANTS = {
    "b": (500, 600, 0.02, 0.6, True), "d": (3000, 1500, 0.02, 0.6, True), "g": (1600, 700, 0.03, 0.6, True),
    "t": (3800, 1800, 0.04, 0.8, False), "s": (5500, 1500, 0.11, 0.35, False), "f": (4000, 4500, 0.10, 0.15, False),
}  # fmt: skip
# Pitch (Hz), resonances beside an adult man's, share of breath, and how much is taken from high frequencies (dB an
# octave).
SPEAKERS = {
    "ada": (205, 1.16, 0.05, 9), "ben": (112, 1.00, 0.03, 11), "cleo": (232, 1.22, 0.10, 10),
    "dan": (98, 0.94, 0.04, 8), "eve": (187, 1.12, 0.03, 12), "finn": (128, 1.04, 0.12, 10),
    "gus": (105, 0.98, 0.08, 13), "hana": (245, 1.19, 0.04, 8), "ida": (176, 1.09, 0.12, 9),
    "jon": (140, 1.02, 0.02, 9),
}  # fmt: skip
# What lips and the resonances above the fourth give back of it (dB an octave), the slope of the pulses included.
_LIPS = 12.0
_CLOSURE, _VOWEL, _GLIDE = 0.05, 0.14, 0.03  # seconds
_HOP, _WINDOW = 160, 512
# Recordings that are made at once.
_AT_ONCE = 100


def speech(split: str) -> dict[str, list]:
    """The recordings of a split, and what each one says.

    Making them takes some seconds; they are kept in `HF_HOME/hfssl`, and the same in every run.

    Args:
        split (`str`):
            `"train"` (2,400 recordings, about 40 minutes) or `"test"` (480), of the same words and speakers.

    Returns:
        `dict[str, list]`: `audio`, FLAC files at 16 kHz; `label`, 0 to 23, the word, its place in `WORDS`; `speaker`,
        0 to 9, the place in `SPEAKERS`; `text`, the word as it is written.
    """
    import scipy

    soundfile = libsndfile()
    made_with = f"np{np.__version__}-sp{scipy.__version__}-sf{soundfile.__version__}"
    return cached_columns(f"speech-{split}-v{FORMAT_VERSION}-{made_with}", lambda: _make(split))


def _make(split: str) -> dict[str, list]:
    soundfile = libsndfile()
    number, seed = NUM_RECORDINGS[split], list(NUM_RECORDINGS).index(split)
    label = np.arange(number) % len(WORDS)
    speaker = keyed.permutation(number, Use.EMBEDDED_SPEECH, seed, 0) % len(SPEAKERS)
    encoded = []
    for start in range(0, number, _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        generator = keyed.generator(Use.EMBEDDED_SPEECH, seed, 1, start)
        for sound in synthesise([WORDS[i] for i in label[some]], speaker[some], generator):
            file = io.BytesIO()
            soundfile.write(file, sound, SAMPLING_RATE, format="FLAC", subtype="PCM_16")
            encoded.append(file.getvalue())
    return {
        "audio": encoded, "label": label.tolist(), "speaker": speaker.tolist(), "text": [WORDS[i] for i in label],
    }  # fmt: skip


def synthesise(words: list[str], speakers: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    """Some words, spoken.

    Args:
        words (`list[str]`):
            Syllables of a consonant (b, d, g, t, s, f) and a vowel (a, e, i, o, u).
        speakers (`np.ndarray` of integers and shape `(num_words,)`):
            Places in `SPEAKERS`.
        generator (`np.random.Generator`):
            For all that differs from one recording to the next.

    Returns:
        `list[np.ndarray]`: of each word samples in [-1, 1], `float32`, `SAMPLING_RATE` a second.
    """
    number = len(words)
    voices = np.array(list(SPEAKERS.values()))[speakers].T
    pitch, tract, breath, tilt = (values[:, None] for values in voices)
    tract = tract * (1 + 0.02 * generator.standard_normal((number, 1)))
    speed = generator.uniform(0.8, 1.25, number)
    tracks = [
        _track(word, *each) for word, *each in zip(words, speed, generator.uniform(0.05, 0.3, number), strict=True)
    ]
    frames = np.array([len(track) for track in tracks]) + np.round(generator.uniform(5, 20, number)).astype(int)
    longest = int(frames.max())
    # of each frame four resonances, then voice, noise, and middle and width of its band
    track = np.stack([np.pad(each, ((0, longest - len(each)), (0, 0)), mode="edge") for each in tracks])
    for row, each in enumerate(tracks):
        track[row, len(each) :, 4:6] = 0.0
    # of the glottis: a pitch that falls, with a melody
    time = np.arange(longest) / frames[:, None]
    melody = 1 + 0.1 * np.sin(
        2 * np.pi * (generator.uniform(0.5, 1.5, (number, 1)) * time + generator.random((number, 1)))
    )
    contour = pitch * (1 + 0.06 * generator.standard_normal((number, 1))) * melody * (1.08 - 0.16 * time)
    samples = (longest - 1) * _HOP + _WINDOW
    of_sample = np.minimum(np.arange(samples) // _HOP, longest - 1)
    phase = np.cumsum(contour[:, of_sample] / SAMPLING_RATE, axis=1)
    pulses = (2 * (phase % 1.0) - 1).astype(np.float32)
    noise = generator.standard_normal((2, number, samples), dtype=np.float32)
    voiced = _spectrum(pulses + breath.astype(np.float32) * 4 * noise[0])
    hertz = np.fft.rfftfreq(_WINDOW, 1 / SAMPLING_RATE).astype(np.float32)
    octaves = np.log2(np.maximum(hertz, 100) / 100)
    voiced *= (10 ** ((_LIPS - tilt) * octaves / 20)).astype(np.float32)[:, None]
    squares = hertz**2
    damping = np.ones(voiced.shape, np.float32)
    for formant, bandwidth in enumerate(_BANDWIDTHS):
        share = squares / ((track[..., formant] * tract).astype(np.float32) ** 2)[..., None]
        narrow = (bandwidth / (track[..., formant] * tract)).astype(np.float32) ** 2
        damping *= (1 - share) ** 2 + share * narrow[..., None]
    voiced *= track[..., 4:5].astype(np.float32) / np.sqrt(damping)
    hissing = track[..., 5] > 0
    loudness, middle, width = (track[hissing][:, column, None].astype(np.float32) for column in (5, 6, 7))
    voiced[hissing] += _spectrum(noise[0])[hissing] * (3 * loudness) * np.exp(-(((hertz - middle) / width) ** 2))
    sound = _sound(voiced, samples)
    sound /= np.sqrt(np.mean(sound**2, axis=1, keepdims=True)) + 1e-9
    behind = _behind(noise[1], generator.uniform(-1, 1, (number, 1)))
    sound += behind * 10 ** (-generator.uniform(12, 30, (number, 1)).astype(np.float32) / 20)
    sound *= generator.uniform(0.03, 0.1, (number, 1)).astype(np.float32)
    return [np.clip(each[: length * _HOP], -1, 1) for each, length in zip(sound, frames.tolist(), strict=True)]


def _track(word: str, speed: float, before: float) -> np.ndarray:
    """What the mouth does, frame by frame: resonances, voice, noise, middle and width of the noise's band."""
    frame = _HOP / SAMPLING_RATE
    rows = [(*_VOWELS[word[1]], 0.0, 0.0, 1000.0, 500.0)] * round(before / frame)
    for consonant, vowel in zip(word[::2], word[1::2], strict=True):
        middle, width, seconds, loudness, is_voiced = _CONSONANTS[consonant]
        closed, burst, open_ = (max(round(s / speed / frame), 1) for s in (_CLOSURE, seconds, _VOWEL))
        last = rows[-1][:4] if rows else _VOWELS[vowel]
        rows += [(*last, 0.05 if is_voiced else 0.0, 0.0, middle, width)] * closed
        rows += [(*_VOWELS[vowel], 0.2 if is_voiced else 0.0, loudness, middle, width)] * burst
        rows += [(*_VOWELS[vowel], 1.0, 0.0, middle, width)] * open_
    rows += [(*rows[-1][:4], 0.0, 0.0, *rows[-1][6:])] * (2 * round(_GLIDE / frame))
    track = np.array(rows, np.float64)
    # a mouth does not jump: resonances glide into each other, the voice swells and fades, a burst is sudden
    kernel = np.hanning(2 * round(_GLIDE / frame) + 1)[1:-1]
    for column in range(5):
        padded = np.pad(track[:, column], len(kernel) // 2, mode="edge")
        track[:, column] = np.convolve(padded, kernel / kernel.sum(), mode="valid")
    return track


def _spectrum(sound: np.ndarray) -> np.ndarray:
    """Of each window of a sound, `(num_sounds, num_frames, num_bins)`."""
    import scipy.fft

    windows = np.lib.stride_tricks.sliding_window_view(sound, _WINDOW, axis=1)[:, ::_HOP]
    return scipy.fft.rfft(windows * _window(), axis=2)


def _sound(spectrum: np.ndarray, samples: int) -> np.ndarray:
    """The sound of such windows, laid over each other."""
    import scipy.fft

    windows = scipy.fft.irfft(spectrum, _WINDOW, axis=2).astype(np.float32) * _window()
    sound = np.zeros((len(spectrum), samples), np.float32)
    for number in range(windows.shape[1]):
        sound[:, number * _HOP : number * _HOP + _WINDOW] += windows[:, number]
    return sound


def _window() -> np.ndarray:
    return np.hanning(_WINDOW).astype(np.float32)


def _behind(noise: np.ndarray, color: np.ndarray) -> np.ndarray:
    """Noise of a color, from a rumble (-1) by an even hiss (0) to a sharp one (1)."""
    import scipy.fft

    spectrum = scipy.fft.rfft(noise, axis=1)
    octaves = np.log2(np.maximum(np.linspace(0, SAMPLING_RATE / 2, spectrum.shape[1]), 60) / 1000)
    spectrum *= 10 ** (6 * color * octaves / 20)
    behind = scipy.fft.irfft(spectrum, noise.shape[1], axis=1).astype(np.float32)
    return behind / np.sqrt(np.mean(behind**2, axis=1, keepdims=True))
