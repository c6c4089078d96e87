"""Claims about the files of samples: pictures, videos and sounds read back as what was written."""

from __future__ import annotations

import io
import wave
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from redi.errors import InputError
from redi.samples import encoded, shown

FRAMES = np.random.default_rng(0).random((5, 16, 24, 3), dtype=np.float32)


def picture_of(frame: npt.NDArray[np.float32]) -> Image.Image:
    return Image.fromarray((frame * 255).round().astype(np.uint8))


PICTURE = picture_of(FRAMES[0])


def test_a_picture_is_written_as_png() -> None:
    ending, content = encoded(PICTURE)
    assert ending == ".png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), np.asarray(PICTURE))


@pytest.mark.parametrize(
    "video",
    [FRAMES, torch.from_numpy(FRAMES), [picture_of(frame) for frame in FRAMES]],
    ids=["array", "tensor", "list"],
)
def test_a_video_is_written_as_an_animation_of_all_its_frames(video: Any) -> None:
    ending, content = encoded(video)
    assert ending == ".webp"
    with Image.open(io.BytesIO(content)) as read:
        assert (read.n_frames, read.size) == (5, (24, 16))
        assert np.array_equal(np.asarray(read.convert("RGB")), np.asarray(PICTURE))


@pytest.mark.parametrize("shape", [(100,), (2, 100)])
def test_sound_is_written_as_wav(shape: tuple[int, ...]) -> None:
    waveform = torch.linspace(-1.2, 1, 200)[: shape[-1]].expand(shape)
    ending, content = encoded(waveform, 8000)
    assert ending == ".wav"
    with wave.open(io.BytesIO(content)) as read:
        assert (read.getnchannels(), read.getframerate(), read.getnframes()) == (waveform.ndim, 8000, 100)
        back = np.frombuffer(read.readframes(100), "<i2").reshape(100, -1)[:, 0] / 32767
    assert np.abs(back - waveform.reshape(-1, 100)[0].clip(-1, 1).numpy()).max() < 1e-4


def test_what_is_shown_is_the_picture_or_the_middle_frame_and_nothing_of_sound() -> None:
    assert shown(PICTURE) is PICTURE
    middle = shown(FRAMES)
    assert middle is not None
    assert np.array_equal(np.asarray(middle), np.asarray(picture_of(FRAMES[2])))
    assert shown(torch.zeros(2, 100)) is None


@pytest.mark.parametrize("sample", ["text", torch.zeros(2, 100), torch.zeros(1, 2, 3, 4, 5)])
def test_what_cannot_be_written_is_refused(sample: Any) -> None:
    with pytest.raises(InputError, match="to write"):
        encoded(sample)
