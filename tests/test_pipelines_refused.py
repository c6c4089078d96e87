"""Claims about pipelines that redi cannot run: refused by name, before anything is generated, and left as they were."""

from __future__ import annotations

import pytest
import torch

from pipelines_refused import REFUSED
from tiny_pipelines import Tiny

SAID = {
    "SkyReelsV2DiffusionForcing": "the pipeline copies its UniPCMultistepScheduler while redi runs it",
    "TextToVideoZero": "the pipeline copies its DDIMScheduler while redi runs it",
    "CogVideoX": "scheduler CogVideoXDPMScheduler",
    "StableDiffusionImg2Img with PNDM": "a loop of PNDMScheduler from call 1 of its schedule (image-to-image)",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_it_runs_alone_and_is_refused_under_redi(name: str) -> None:
    refused = REFUSED[name]
    pipe = Tiny(refused.make).build()
    plain = refused.samples(pipe)
    assert refused.refusal(pipe) == SAID[name]
    assert torch.equal(refused.samples(pipe), plain)
    assert not {"step", "set_timesteps"} & vars(pipe.scheduler).keys()
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert not [part for part in networks if "forward" in vars(part)]
