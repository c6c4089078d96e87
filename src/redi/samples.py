"""Owns showing and encoding what a pipeline makes, a picture, a video or sound; must not know where it is written."""

from __future__ import annotations

import io
import wave
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from redi.errors import InputError

_FRAMES_PER_SECOND = 16


def shown(sample: Any) -> Image.Image | None:
    """Return a picture as it is, the middle frame of a video, and nothing of a sound."""
    frames = _frames(sample)
    return frames[len(frames) // 2] if frames else None


def encoded(sample: Any, sampling_rate: int | None = None) -> tuple[str, bytes]:
    """Return the ending and the content of a file: PNG, animated WebP (16 frames a second) or 16-bit WAV.

    Args:
        sample: A PIL image; frames as PIL images or as an array (f, h, w, 3) of 0 to 1; or a waveform (channels, n) or
            (n) of -1 to 1, as array or tensor.
        sampling_rate: Numbers of a waveform in a second.

    Raises:
        InputError: It is none of these.
    """
    frames, buffer = _frames(sample), io.BytesIO()
    if isinstance(sample, Image.Image):
        sample.save(buffer, "PNG")
        return ".png", buffer.getvalue()
    if frames:
        frames[0].save(
            buffer,
            "WEBP",
            save_all=True,
            append_images=frames[1:],
            duration=round(1000 / _FRAMES_PER_SECOND),
            loop=0,
            lossless=True,
        )
        return ".webp", buffer.getvalue()
    waveform = _array(sample)
    if waveform is None or waveform.ndim not in (1, 2) or sampling_rate is None:
        raise InputError(f"a {type(sample).__name__} to write", expected="a picture, frames, or sound of a known rate")
    channels = waveform.reshape(-1, waveform.shape[-1])
    with wave.open(buffer, "wb") as file:
        file.setnchannels(len(channels))
        file.setsampwidth(2)
        file.setframerate(sampling_rate)
        file.writeframes((channels.T.clip(-1, 1) * 32767).round().astype("<i2").tobytes())
    return ".wav", buffer.getvalue()


def numbers(sample: Any) -> npt.NDArray[np.float32]:
    """Return the numbers of a sample: pixels (h, w, 3) or frames (f, h, w, 3) of 0 to 1, or a waveform.

    Raises:
        InputError: It has none.
    """
    if isinstance(sample, Image.Image):
        return np.asarray(sample.convert("RGB")).astype(np.float32) / np.float32(255)
    if isinstance(sample, list):
        return np.stack([numbers(frame) for frame in sample])
    found = _array(sample)
    if found is None:
        raise InputError(f"a {type(sample).__name__}", expected="a picture, frames or sound")
    return found


def _frames(sample: Any) -> list[Image.Image]:
    """Return the pictures that a sample shows, none if it is sound."""
    if isinstance(sample, Image.Image):
        return [sample]
    if isinstance(sample, list):
        return [frame for frame in sample if isinstance(frame, Image.Image)]
    pixels = _array(sample)
    if pixels is None or pixels.ndim != 4:
        return []
    return [Image.fromarray((frame.clip(0, 1) * 255).round().astype(np.uint8)) for frame in pixels]


def _array(sample: Any) -> npt.NDArray[np.float32] | None:
    if hasattr(sample, "detach"):  # a tensor
        sample = sample.detach().float().cpu().numpy()
    return sample.astype(np.float32) if isinstance(sample, np.ndarray) else None
