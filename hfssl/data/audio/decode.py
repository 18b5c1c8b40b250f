"""Encoded sound to samples: float32 in [-1, 1], one channel, at one rate.

Channels are averaged. libsndfile (the package `soundfile`) decodes wav, flac, ogg, opus, mp3, aiff and their like of
any depth; for what it does not know (m4a, aac, wma) PyAV is asked, where it is installed. Resampling is torchaudio's
windowed sinc, with a kernel as long as its default; between rates with little in common, whose kernel would fill the
memory, SciPy's polyphase filter.

What cannot be decoded raises [`DamagedAudio`] with a short reason: no sound at all, a file that ends before its header
says so, values that are no numbers.
"""

import functools
import io
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import torch

from ...errors import UserError, first_line


# Of a decoded recording, all channels together, and of what is resampled: a small file can hold far more than there is
# memory.
MAX_SAMPLES = 1 << 30
# Samples a second of anything that was recorded, bats and machines included.
_MAX_RATE = 1 << 20
# Numbers in a kernel of torchaudio's, which grows with the product of both rates without what divides them: 44,100 to
# 16,000 Hz needs 76,000, 11,127 Hz 178 million.
_MAX_KERNEL = 1 << 22
# Sizes in a header that mean "not known": of a stream that was written while it was recorded.
_UNKNOWN_SIZE = 0x7FFFF000
_END_OF_STREAM = 0x04


def libsndfile() -> ModuleType:
    """The package `soundfile`, which is needed only where there is sound.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import soundfile
    except ImportError:
        raise UserError(
            'Sound files need the package soundfile, which is not installed: `pip install "hfssl[audio]"`.'
        ) from None
    return soundfile


class DamagedAudio(ValueError):
    """These bytes are no sound that can be decoded; the message says why, in a few words."""


@dataclass(frozen=True)
class AudioHeader:
    """What an audio file says about itself.

    Attributes:
        seconds (`float`):
            Its length.
        sampling_rate (`int`):
            Samples a second.
        num_channels (`int`):
            Channels.
        format (`str`):
            libsndfile's name of the format, such as `"WAV"`, or FFmpeg's.
    """

    seconds: float
    sampling_rate: int
    num_channels: int
    format: str


def audio_header(data: bytes) -> AudioHeader:
    """Length and kind of an encoded recording, without decoding it.

    Raises:
        DamagedAudio: if it is no sound.
    """
    soundfile = libsndfile()
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, channels, kind, frames = file.samplerate, file.channels, file.format, file.frames
    except soundfile.LibsndfileError as error:
        samples, rate, kind = _decoded_by_av(data, error)
        channels, frames = len(samples), samples.shape[1]
    return AudioHeader(frames / rate, rate, channels, kind)


def decode_audio(data: bytes, sampling_rate: int) -> np.ndarray:
    """The sound of an encoded recording.

    Args:
        data (`bytes`):
            The content of an audio file.
        sampling_rate (`int`):
            What it is resampled to.

    Returns:
        `np.ndarray` of dtype `float32` and shape `(num_samples,)`: the mean of its channels.

    Raises:
        DamagedAudio: if it cannot be decoded.

    Example:

    ```python
    >>> decode_audio(Path("hello.wav").read_bytes(), 16_000).shape  # of one second
    (16000,)
    ```
    """
    samples, rate = _decoded(data)
    sound = samples[0] if len(samples) == 1 else samples.mean(axis=0, dtype=np.float32)
    if not sound.size:
        raise DamagedAudio("it holds no sound")
    # one sum instead of a mask: infinite and undefined values stay what they are in it
    if not math.isfinite(float(sound.sum(dtype=np.float64))):
        raise DamagedAudio("it holds values that are no numbers (NaN or infinity)")
    if rate > _MAX_RATE or len(sound) * sampling_rate > MAX_SAMPLES * rate:
        raise DamagedAudio(f"its header says {rate:,} samples a second, and it has {len(sound):,}")
    return resampled(sound, rate, sampling_rate)


def decode_all(
    samples: Iterable[bytes], sampling_rate: int
) -> tuple[list[tuple[int, np.ndarray]], list[tuple[int, str]]]:
    """The sound of several recordings: `(number, sound)` of those that can be decoded, `(number, reason)` of the
    others."""
    sounds, bad = [], []
    for number, data in enumerate(samples):
        try:
            sounds.append((number, decode_audio(data, sampling_rate)))
        except DamagedAudio as error:
            bad.append((number, str(error)))
    return sounds, bad


def is_heard(sound: np.ndarray, min_samples: int) -> bool:
    """Whether there is something to learn from a sound: it is long enough, and not digital silence."""
    return len(sound) >= min_samples and sound.min() < sound.max()


def resampled(sound: np.ndarray, rate: int, sampling_rate: int) -> np.ndarray:
    """A sound of `rate` samples a second as one of `sampling_rate`: `ceil(num_samples * sampling_rate / rate)`.

    Args:
        sound (`np.ndarray` of dtype `float32` and shape `(num_samples,)`):
            One channel.
        rate, sampling_rate (`int`):
            What it has, and what it is to have.
    """
    if rate == sampling_rate:
        return np.ascontiguousarray(sound, dtype=np.float32)
    common = math.gcd(rate, sampling_rate)
    before, after = rate // common, sampling_rate // common
    if before * after > _MAX_KERNEL:
        from scipy.signal import resample_poly

        return resample_poly(sound, after, before).astype(np.float32)
    return _resampler(rate, sampling_rate)(torch.from_numpy(np.ascontiguousarray(sound, np.float32))).numpy()


# the kernel is made once: as long as that of most sounds takes to apply
@functools.lru_cache(maxsize=32)
def _resampler(rate: int, sampling_rate: int):
    from torchaudio.transforms import Resample

    return Resample(rate, sampling_rate)


def _decoded(data: bytes) -> tuple[np.ndarray, int]:
    """Samples `(num_channels, num_samples)` and their rate."""
    soundfile = libsndfile()
    stated = _stated_size(data)
    if stated is not None and stated > len(data):
        raise DamagedAudio(f"it ends in the middle: {len(data):,} of {stated:,} bytes are there")
    if data.startswith(b"OggS") and not _is_whole_ogg(data):
        raise DamagedAudio("it ends in the middle of a stream")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.frames * file.channels > MAX_SAMPLES:
                raise DamagedAudio(f"it is longer than {MAX_SAMPLES:,} samples")
            is_guess = file.format == "MP3" and not _states_frames(data)
            if is_guess and find_spec("av") is not None:  # libsndfile reads no further than its guess
                samples, rate, _ = _read_by_av(data)
                return samples, rate
            samples = file.read(dtype="float32", always_2d=True)
            if len(samples) < file.frames and not is_guess:
                raise DamagedAudio(f"it ends in the middle: {len(samples):,} of {file.frames:,} samples are there")
            return samples.T, file.samplerate
    except soundfile.LibsndfileError as error:
        samples, rate, _ = _decoded_by_av(data, error)
        return samples, rate


def _stated_size(data: bytes) -> int | None:
    """Bytes that a wav or aiff file has to have for the sound that it says is in it. Only that counts: the size of the
    file as a whole, which comes first, is often wrong by some bytes."""
    order, sound = {b"RIFF": ("<", b"data"), b"FORM": (">", b"SSND")}.get(data[:4], ("", b""))
    start = 12
    while order and start + 8 <= len(data):
        [size] = struct.unpack_from(f"{order}I", data, start + 4)
        if data[start : start + 4] == sound:
            return start + 8 + size if size < _UNKNOWN_SIZE else None
        start += 8 + size + size % 2
    return None


def _states_frames(data: bytes) -> bool:
    """Whether an mp3 file says how many frames it has. Else its length is a guess by its first one."""
    start = 0
    if data.startswith(b"ID3") and len(data) >= 10:
        start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
    first = data[start : start + 4096]
    return any(tag in first for tag in (b"Xing", b"Info", b"VBRI"))


def _is_whole_ogg(data: bytes) -> bool:
    """Whether the last page of an ogg file is whole and says that it is the last."""
    start, flags = 0, 0
    while start < len(data):
        if data[start : start + 4] != b"OggS" or start + 27 > len(data):
            return not data[start:].strip(b"\0")
        flags, segments = data[start + 5], data[start + 26]
        start += 27 + segments + sum(data[start + 27 : start + 27 + segments])
    return start == len(data) and bool(flags & _END_OF_STREAM)


def _decoded_by_av(data: bytes, error: Exception) -> tuple[np.ndarray, int, str]:
    """Samples, rate and format of what libsndfile refused with `error`."""
    is_other_format = data[4:8] == b"ftyp" or data[:4] in (b"\x1a\x45\xdf\xa3", b"\x30\x26\xb2\x75", b"ADIF")
    is_other_format |= data[:1] == b"\xff" and data[1:2] in (b"\xf1", b"\xf9")
    if find_spec("av") is None:
        if is_other_format:  # of all files that are like this one
            raise UserError(
                "These recordings are in a format (such as m4a or aac) that libsndfile does not decode. Install PyAV: "
                '`pip install "hfssl[audio]"`, or convert them, e.g. `ffmpeg -i a.m4a a.flac`.'
            ) from error
        raise DamagedAudio(_reason(error)) from error
    if not is_other_format:
        raise DamagedAudio(_reason(error)) from error
    return _read_by_av(data)


def _read_by_av(data: bytes) -> tuple[np.ndarray, int, str]:
    """Samples, rate and format by FFmpeg."""
    import av

    try:
        with av.open(io.BytesIO(data)) as container:
            stream = container.streams.audio[0]
            resampler = av.AudioResampler(format="fltp")
            frames = [frame for given in container.decode(stream) for frame in resampler.resample(given)]
            parts = [frame.to_ndarray() for frame in [*frames, *resampler.resample(None)]]
            samples = np.concatenate(parts, axis=1) if parts else np.zeros((1, 0), np.float32)
            return samples, stream.rate, container.format.name
    except (av.error.FFmpegError, IndexError) as other:
        raise DamagedAudio(_reason(other)) from other


def _reason(error: Exception) -> str:
    """What the decoder says, without the address of the bytes in memory."""
    said = first_line(error).rpartition(">: ")[2].removeprefix("Error : ").rstrip(".")
    # of bytes in memory, libmpg123 says that the file does not exist
    return said if said and "does not exist" not in said else "it is no audio file"
