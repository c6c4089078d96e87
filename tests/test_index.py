"""Claims about exact search: the same neighbours as float64, also where raw matrix products would rank wrong."""

from __future__ import annotations

import pytest
import torch

from redi.knowledge_base import ExactIndex, Index
from redi.knowledge_base.index import IndexCache


def brute(keys: torch.Tensor, queries: torch.Tensor, neighbors: int) -> tuple[torch.Tensor, torch.Tensor]:
    distances = torch.linalg.vector_norm(queries.double()[:, None] - keys.double()[None], dim=2)
    found = distances.sort(dim=1, stable=True)
    return found.indices[:, :neighbors], found.values[:, :neighbors]


@pytest.mark.parametrize("offset", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("neighbors", [1, 2, 64])
def test_search_equals_brute_force_in_float64(offset: float, neighbors: int) -> None:
    generator = torch.Generator().manual_seed(1)
    common = offset * torch.randn(2048, generator=generator)
    keys = common + 0.05 * torch.randn(300, 2048, generator=generator)
    queries = common + 0.05 * torch.randn(7, 2048, generator=generator)
    positions, distances = ExactIndex(keys).search(queries, neighbors)
    expected, exact = brute(keys, queries, neighbors)
    assert torch.equal(positions, expected)
    assert torch.allclose(distances.double(), exact, rtol=1e-5)


def test_a_raw_matrix_product_would_rank_wrong_where_centring_does_not() -> None:
    generator = torch.Generator().manual_seed(1)
    common = 30 * torch.randn(2048, generator=generator)
    keys = common + 0.05 * torch.randn(300, 2048, generator=generator)
    raw = keys.square().sum(1) - 2 * keys @ keys.T
    assert not torch.equal(raw.topk(2, largest=False).indices, brute(keys, keys, 2)[0])


def test_fewer_keys_than_neighbours_give_fewer() -> None:
    keys = torch.eye(3)
    positions, distances = ExactIndex(keys).search(torch.zeros(2, 3), 10)
    assert positions.shape == distances.shape == (2, 3)


def test_identical_keys_are_found_once_each() -> None:
    positions, distances = ExactIndex(torch.ones(50, 8)).search(torch.ones(1, 8), 3)
    assert len(set(positions[0].tolist())) == 3
    assert distances.tolist() == [[0.0, 0.0, 0.0]]


def test_no_key_and_no_query_are_allowed() -> None:
    assert ExactIndex(torch.empty(0, 8)).search(torch.ones(2, 8), 3)[0].shape == (2, 0)
    assert ExactIndex(torch.ones(4, 8)).search(torch.empty(0, 8), 3)[0].shape == (0, 3)


def test_a_query_finds_the_same_alone_and_in_a_batch() -> None:
    generator = torch.Generator().manual_seed(2)
    index = ExactIndex(torch.randn(200, 64, generator=generator))
    queries = torch.randn(9, 64, generator=generator)
    together = index.search(queries, 4)
    for row in range(9):
        alone = index.search(queries[row : row + 1], 4)
        assert torch.equal(together[0][row], alone[0][0])
        assert torch.allclose(together[1][row], alone[1][0], rtol=1e-6)


def test_exact_index_is_an_index() -> None:
    assert isinstance(ExactIndex(torch.ones(1, 1)), Index)


def test_the_cache_forgets_what_was_used_longest_ago() -> None:
    made: list[str] = []

    def make(name: str) -> Index:
        made.append(name)
        return ExactIndex(torch.ones(1, 1))

    cache = IndexCache(limit=20)
    for name in ("a", "b", "a", "c", "a", "b"):
        cache.get(name, 10, lambda name=name: make(name))  # type: ignore[misc]
    assert made == ["a", "b", "c", "b"]
    cache.get("huge", 100, lambda: make("huge"))
    cache.get("huge", 100, lambda: make("huge"))
    assert made.count("huge") == 1
