"""Claims about the noise bank: reproducible, recognised after scaling and rounding, nothing else recognised."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from redi.errors import KnowledgeBaseError, NoiseError
from redi.knowledge_base import NoiseBank

SHAPE = (4, 8, 8)


def test_a_seed_gives_the_noise_that_diffusers_draws() -> None:
    from diffusers.utils.torch_utils import randn_tensor

    bank = NoiseBank.draw([7, 2**64 - 1], SHAPE)
    for row, seed in enumerate((7, 2**64 - 1)):
        drawn = randn_tensor((1, *SHAPE), generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
        assert torch.equal(bank.latents[row : row + 1], drawn)


def test_a_saved_bank_comes_back(tmp_path: Path) -> None:
    bank = NoiseBank.draw([1, 2], SHAPE)
    bank.save(tmp_path / "bank.safetensors")
    again = NoiseBank.load(tmp_path / "bank.safetensors", [1, 2])
    assert again.seeds == bank.seeds
    assert torch.equal(again.latents, bank.latents)


def test_a_damaged_bank_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bank.safetensors"
    with pytest.raises(KnowledgeBaseError):
        NoiseBank.load(path, [1])
    NoiseBank.draw([1, 2], SHAPE).save(path)
    with pytest.raises(KnowledgeBaseError, match="3 noises"):
        NoiseBank.load(path, [1, 2, 3])
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(KnowledgeBaseError):
        NoiseBank.load(path, [1, 2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 14.6146])
def test_a_noise_is_recognised_after_rounding_and_scaling(dtype: torch.dtype, scale: float) -> None:
    bank = NoiseBank.draw(range(16), SHAPE)
    chosen = [3, 15, 0, 3]
    assert bank.match(bank.latents[chosen].to(dtype) * scale, scale) == chosen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_foreign_noise_is_not_recognised(dtype: torch.dtype) -> None:
    bank = NoiseBank.draw(range(16), SHAPE)
    foreign = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(99))
    nearly = bank.latents[2:3].clone()
    nearly[0, -1, -1, -1] += 0.1
    nan = bank.latents[2:3].clone()
    nan[0, 0, 0, 0] = float("nan")
    rows = torch.cat([foreign, nearly, nan, 2 * bank.latents[2:3], bank.latents[2:3]])
    assert bank.match(rows.to(dtype)) == [None, None, None, None, 2]


def test_latents_of_another_size_are_not_recognised() -> None:
    bank = NoiseBank.draw([1, 2], SHAPE)
    assert bank.match(torch.zeros(3, 4, 9, 9)) == [None, None, None]


def test_an_empty_bank_recognises_nothing_and_offers_no_choice() -> None:
    bank = NoiseBank.draw([], SHAPE)
    assert bank.match(torch.zeros(2, *SHAPE)) == [None, None]
    with pytest.raises(NoiseError, match="empty noise bank"):
        bank.choose(1)


def test_the_same_generator_state_chooses_the_same() -> None:
    bank = NoiseBank.draw(range(16), SHAPE)
    assert bank.choose(5, torch.Generator().manual_seed(4)) == bank.choose(5, torch.Generator().manual_seed(4))
    torch.manual_seed(4)
    once = bank.choose(5)
    torch.manual_seed(4)
    assert bank.choose(5) == once


def test_images_of_one_call_differ_as_long_as_the_bank_lasts() -> None:
    bank = NoiseBank.draw(range(6), SHAPE)
    chosen = bank.choose(14, torch.Generator().manual_seed(0))
    assert sorted(chosen[:6]) == sorted(chosen[6:12]) == list(range(6))


def test_a_generator_for_each_image_chooses_as_it_would_alone() -> None:
    bank = NoiseBank.draw(range(16), SHAPE)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    alone = [bank.choose(1, torch.Generator().manual_seed(seed))[0] for seed in (1, 2)]
    assert bank.choose(2, generators) == alone
    with pytest.raises(NoiseError, match="2 generators for 3 images"):
        bank.choose(3, generators)


@pytest.mark.parametrize("seeds", [[1, 1], [-1], [2**64], [True], [1.5]])
def test_wrong_seeds_are_refused(seeds: list[int]) -> None:
    with pytest.raises(NoiseError):
        NoiseBank.draw(seeds, SHAPE)


def test_a_seed_names_its_noise() -> None:
    bank = NoiseBank.draw([8, 3], SHAPE)
    assert bank.index_of(3) == 1
    with pytest.raises(NoiseError, match="seed 4"):
        bank.index_of(4)
