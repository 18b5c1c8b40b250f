"""What is made of waveforms before there is a network: filter banks and cepstral coefficients."""

from functools import cache

import torch
import torch.nn.functional as F

from ..losses import at_least_float32, full_precision


# At 16 kHz: windows of 25 ms, 10 ms apart.
SAMPLING_RATE, WINDOW, HOP = 16_000, 400, 160
_FFT = 512
# Below what 16-bit samples can hold; the logarithm of silence.
_FLOOR = 1.192092955078125e-07


@cache
def _constants(num_mel_bins: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Kaldi's mel filters, `(257, num_mel_bins)`, and its window."""
    from transformers.audio_utils import mel_filter_bank, window_function

    filters = mel_filter_bank(
        _FFT // 2 + 1, num_mel_bins, 20.0, SAMPLING_RATE / 2, SAMPLING_RATE, norm=None, mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )  # fmt: skip
    window = window_function(WINDOW, "povey", periodic=False)
    return tuple(torch.from_numpy(each).float().to(device, non_blocking=True) for each in (filters, window))


def log_mel(waveforms: torch.Tensor, num_mel_bins: int = 80) -> torch.Tensor:
    """Logarithms of mel filter banks, as Kaldi and the feature extractors of transformers compute them.

    Args:
        waveforms (`torch.Tensor` of shape `(batch_size, num_samples)`):
            At 16 kHz, at least 400 samples.
        num_mel_bins (`int`, *optional*, defaults to `80`):
            Filters.

    Returns:
        `torch.Tensor` of shape `(batch_size, 1 + (num_samples - 400) // 160, num_mel_bins)`, in float32.
    """
    filters, window = _constants(num_mel_bins, waveforms.device)
    with full_precision(waveforms):
        # as 16-bit samples
        frames = waveforms.float().unfold(-1, WINDOW, HOP) * 2.0**15
        frames = frames - frames.mean(-1, keepdim=True)
        # pre-emphasis: the first sample is its own predecessor
        frames = (frames - 0.97 * F.pad(frames, (1, 0), mode="replicate")[..., :-1]) * window
        power = torch.fft.rfft(frames, _FFT).abs().square()
        return (power @ filters).clamp(min=_FLOOR).log()


def stacked_log_mel(waveforms: torch.Tensor, num_mel_bins: int, hop: int, length: int) -> torch.Tensor:
    """Filter banks side by side, one row for each `hop` samples: frame `i` has those that begin at its first sample.

    Args:
        waveforms (`torch.Tensor` of shape `(batch_size, num_samples)`):
            At 16 kHz.
        num_mel_bins (`int`):
            Filters.
        hop (`int`):
            Samples from one row to the next, a multiple of 160.
        length (`int`):
            Rows. Where the last would need filter banks after the end, the last ones are repeated.

    Returns:
        `torch.Tensor` of shape `(batch_size, length, num_mel_bins * hop // 160)`.
    """
    if hop % HOP:
        raise ValueError(
            f"An encoder with a frame every {hop} samples has no filter banks that begin with its frames: these are "
            f"{HOP} samples apart. Pass one whose `conv_stride` multiplies to a multiple of {HOP}, such as 320."
        )
    banks, stack = log_mel(waveforms, num_mel_bins), hop // HOP
    rows = torch.arange(length * stack, device=banks.device).clamp(max=banks.shape[1] - 1)
    return banks.index_select(1, rows).unflatten(1, (length, stack)).flatten(2)


def normalised_over_time(features: torch.Tensor, is_sound: torch.Tensor | None = None) -> torch.Tensor:
    """Each dimension of each clip with a mean of 0 and a variance of 1 over its frames, those of padding aside.

    Args:
        features (`torch.Tensor` of shape `(batch_size, num_frames, dim)`):
            Any.
        is_sound (`torch.BoolTensor` of shape `(batch_size, num_frames)`, *optional*):
            Frames that are no padding. Left out, all.
    """
    with full_precision(features):
        features = at_least_float32(features)
        if is_sound is None:
            is_sound = torch.ones_like(features[..., 0], dtype=torch.bool)
        counts = is_sound.unsqueeze(-1).to(features.dtype)
        number = counts.sum(1, keepdim=True).clamp(min=1.0)
        centred = features - (features * counts).sum(1, keepdim=True) / number
        variance = (centred.square() * counts).sum(1, keepdim=True) / number
        return centred * (variance + 1e-7).rsqrt()


def mfcc(waveform: torch.Tensor) -> torch.Tensor:
    """13 cepstral coefficients with their first and second differences over time, of HuBERT's first iteration.

    Args:
        waveform (`torch.Tensor` of shape `(num_samples,)`):
            At 16 kHz, at least 400 samples.

    Returns:
        `torch.Tensor` of shape `(1 + (num_samples - 400) // 160, 39)`: 100 a second.
    """
    from torchaudio.compliance import kaldi
    from torchaudio.functional import compute_deltas

    with full_precision(waveform):
        coefficients = kaldi.mfcc(waveform[None].float(), sample_frequency=SAMPLING_RATE, use_energy=False).T
        first = compute_deltas(coefficients)
        return torch.cat([coefficients, first, compute_deltas(first)]).T.contiguous()
