"""The index of a large base: chosen by measured recall, kept in files that are never believed when they do not fit."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from damaging import peak_megabytes
from redi.cli.app import app
from redi.errors import KnowledgeBaseError, RediWarning
from redi.knowledge_base import EntryBatch, KnowledgeBase, Manifest, NoiseBank
from redi.knowledge_base.guard import hash_of
from redi.knowledge_base.index_files import Facts, read_facts
from redi.plan import Plan

SHAPE = (4, 8, 8)
PLAN = Plan(10, key_step=1, value_steps=(4,))
COUNT, UNIT, NEAR = 2400, 400, 300


def keys(count: int, seed: int, *, rank: int = 48) -> Tensor:
    """Keys of low rank beside a little white noise, as those of one noise are; more ``rank`` is harder to project."""
    spectrum = torch.arange(1, rank + 1).float().rsqrt()
    basis = torch.linalg.qr(torch.randn(256, rank, generator=torch.Generator().manual_seed(rank))).Q
    generator = torch.Generator().manual_seed(seed)
    signal = (torch.randn(count, rank, generator=generator) * spectrum) @ basis.T
    return (signal + 0.02 * torch.randn(count, 256, generator=generator)).reshape(-1, *SHAPE)


def add(base: KnowledgeBase, unit: int, count: int = UNIT, *, rank: int = 48) -> None:
    ids = [0] * count
    values = torch.full((count, *SHAPE), float(unit))
    prompts = [f"{unit}/{slot}" for slot in range(count)]
    base.add_unit(unit, EntryBatch(prompts, ids, [3] * count, {1: keys(count, unit, rank=rank)}, {4: values}))


def index(base: KnowledgeBase, *, rebuild: bool = False) -> Facts:
    return base.indexer.update(least_bytes=0, rebuild=rebuild)


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of 2,400 entries of one noise, with its index."""
    path = tmp_path_factory.mktemp("base") / "kb"
    bank = NoiseBank.draw((3,), SHAPE)
    manifest = Manifest(
        plan=PLAN, identity={"model": {"id": "tiny"}}, latent_shape=SHAPE, noise={"kind": "shared", "seeds": [3]}
    )
    base = KnowledgeBase.create(path, manifest, bank, {})
    for unit in range(COUNT // UNIT):
        add(base, unit)
    index(base)
    return path


@pytest.fixture
def path(indexed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(indexed, tmp_path / "kb"))


@pytest.fixture
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def exact(path: Path, queries: Tensor, neighbors: int) -> tuple[Tensor, Tensor]:
    """Return the nearest by explicit differences in float64, from what the table holds."""
    (stored,) = KnowledgeBase.open(path)._table.latents(range(len(KnowledgeBase.open(path))), "key_1")
    distances = torch.cdist(
        queries.flatten(1).double(), torch.from_numpy(stored).double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    found = distances.topk(neighbors, dim=1, largest=False)
    return found.indices, found.values


def check_search(path: Path, base: KnowledgeBase, neighbors: int = 2) -> None:
    queries = keys(64, 1000)
    found = base.search(queries, [0] * 64, neighbors, 1)
    rows, distances = exact(path, queries, neighbors)
    assert (found.rows == rows).float().mean() >= 0.99
    same = found.rows == rows
    assert torch.allclose(found.distances[same].double(), distances[same], atol=1e-5)


def indexes(base: KnowledgeBase) -> bool:
    """Say whether the base searches by its index."""
    view = base._searcher._files.view()
    return view is not None and view.part(1, 0) is not None


def test_an_index_finds_what_an_exact_scan_finds(path: Path, quiet: None) -> None:
    base = KnowledgeBase.open(path)
    assert indexes(base)
    check_search(path, base)
    check_search(path, base, neighbors=64)


def test_more_neighbours_than_were_measured_are_found_exactly(path: Path, quiet: None) -> None:
    queries = keys(3, 1000)
    found = KnowledgeBase.open(path).search(queries, [0] * 3, 700, 1)
    assert torch.equal(found.rows.sort(dim=1).values, exact(path, queries, 700)[0].sort(dim=1).values)


def test_the_choice_and_its_recall_are_written_into_the_index(path: Path) -> None:
    (part,) = read_facts(path / "index")[1].parts
    assert part.method == "127 principal components"
    assert part.queries == 512
    assert part.measured[0].neighbors == 2
    assert all(each.lower >= 0.99 and each.recall >= each.lower for each in part.measured)


def test_one_query_gives_what_it_gives_in_a_batch(path: Path) -> None:
    base, queries = KnowledgeBase.open(path), keys(16, 1000)
    together = base.search(queries, [0] * 16, 2, 1)
    alone = torch.cat([base.search(query[None], [0], 2, 1).rows for query in queries])
    assert torch.equal(together.rows, alone)


def test_entries_that_came_after_the_index_are_found(path: Path, quiet: None) -> None:
    base = KnowledgeBase.open(path)
    add(base, 90, 7)
    found = base.search(keys(7, 90), [0] * 7, 1, 1)
    assert indexes(base)
    assert found.rows[:, 0].tolist() == list(range(COUNT, COUNT + 7))
    check_search(path, base)


def test_growing_keeps_the_projection_and_what_is_copied(path: Path, quiet: None) -> None:
    base = KnowledgeBase.open(path)
    folder, before = read_facts(path / "index")
    add(base, 90)
    after = index(base)
    now = read_facts(path / "index")[0]
    name = f"{before.parts[0].file}.safetensors"
    assert (now / name).read_bytes() == (folder / name).read_bytes()
    assert after.rows == before.rows
    assert after.parts[0].count == after.parts[0].measured_at == COUNT + UNIT
    check_search(path, KnowledgeBase.open(path))


def test_the_projection_is_made_anew_when_recall_falls(path: Path) -> None:
    base = KnowledgeBase.open(path)
    folder, before = read_facts(path / "index")
    for unit in range(90, 96):
        add(base, unit, rank=250)
    after = index(base)
    name = f"{before.parts[0].file}.safetensors"
    assert (read_facts(path / "index")[0] / name).read_bytes() != (folder / name).read_bytes()
    assert all(each.lower >= 0.99 for each in after.parts[0].measured)


def test_independent_keys_are_searched_by_rotated_bits(path: Path) -> None:
    from redi.knowledge_base.codes import RotatedCoder
    from redi.knowledge_base.recall import choose

    white = torch.randn(2400, 1024, generator=torch.Generator().manual_seed(0))
    choice = choose(lambda places: white[places], len(white), 1024)
    assert isinstance(choice.coder, RotatedCoder)
    assert choice.measured[0].lower >= 0.99


def test_two_bits_rank_what_one_bit_finds_from_files_as_from_memory(tmp_path: Path) -> None:
    from redi.knowledge_base.codes import RotatedCoder, code_files, encode, filled, open_codes, read_codes, write_codes

    white = torch.randn(1200, 1024, generator=torch.Generator().manual_seed(0))
    queries = white[:64] + 0.5 * torch.randn(64, 1024, generator=torch.Generator().manual_seed(1))
    true = torch.cdist(queries, white).topk(10, dim=1, largest=False).indices
    shares = {}
    for bits in (1, 2):
        coder, path = RotatedCoder.fit(white, bits), tmp_path / f"{bits}.codes"
        codes, asked = encode(coder, white), coder.coordinates(queries, stored=False)
        write_codes(path, coder, codes)
        assert len(code_files(path, coder)) == bits
        assert (read_codes(path, coder, len(white)) == codes).all()
        found = torch.from_numpy(open_codes(path, coder, len(white)).search(asked, 20)[1])
        assert torch.equal(found, torch.from_numpy(filled(coder, codes).search(asked, 20)[1]))
        shares[bits] = (true[:, :, None] == found[:, None]).any(dim=2).float().mean()
    assert shares[2] > shares[1] + 0.05
    last = code_files(path, coder)[-1]
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(KnowledgeBaseError, match="not the codes of 1200 keys"):
        open_codes(path, coder, len(white))


def test_a_reader_takes_a_new_version_while_it_runs(path: Path, quiet: None) -> None:
    reader = KnowledgeBase.open(path)
    check_search(path, reader)
    first = reader._searcher._files.view()
    index(KnowledgeBase.open(path), rebuild=True)
    check_search(path, reader)
    assert reader._searcher._files.view() is not first


def _swap(path: Path, times: int) -> None:
    base = KnowledgeBase.open(path)
    for _ in range(times):
        index(base)


def test_readers_and_an_indexer_do_not_disturb_each_other(path: Path, quiet: None) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_swap, args=(path, 6))
    process.start()
    base, queries = KnowledgeBase.open(path), keys(4, 1000)
    expected = base.search(queries, [0] * 4, 2, 1).rows
    while process.is_alive():
        assert torch.equal(base.search(queries, [0] * 4, 2, 1).rows, expected)
    process.join()
    assert process.exitcode == 0
    assert len(list((path / "index").glob("v-*"))) <= 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "another base", "no json", "bad name", "rows cut"])
def test_a_damaged_index_is_told_and_not_believed(path: Path, damage: str) -> None:
    folder, facts = read_facts(path / "index")
    codes = next(folder.glob("*.codes"))
    if damage == "cut":
        codes.write_bytes(codes.read_bytes()[:-5])
    elif damage == "flipped":
        data = bytearray(codes.read_bytes())
        data[len(data) // 2] ^= 1
        codes.write_bytes(data)
    elif damage == "missing":
        codes.unlink()
    elif damage == "another base":
        text = (folder / "index.json").read_text().replace(facts.kb_id, "0" * len(facts.kb_id))
        (folder / "index.json").write_text(text)
    elif damage == "no json":
        (folder / "index.json").write_text("[" * 5000)
    elif damage == "bad name":
        (path / "index/CURRENT").write_text("../../etc\n")
    else:
        copy = next(path.glob("index/rows-*/key_1.f16"))
        copy.write_bytes(copy.read_bytes()[:1000])
    base = KnowledgeBase.open(path)
    with pytest.warns(RediWarning, match="search is exact"):
        check_search(path, base)
    index(KnowledgeBase.open(path), rebuild=True)
    again = KnowledgeBase.open(path)
    check_search(path, again)
    assert indexes(again)


def test_a_damaged_copy_of_a_row_is_read_from_the_table(path: Path) -> None:
    copy = next(path.glob("index/rows-*/value_4.f16"))
    data = bytearray(copy.read_bytes())
    data[2 * 256 * UNIT] ^= 1
    copy.write_bytes(data)
    base = KnowledgeBase.open(path)
    with pytest.warns(RediWarning, match="checksum"):
        values = base.values([UNIT, 0], 4)
    assert torch.equal(values, torch.stack([torch.ones(SHAPE), torch.zeros(SHAPE)]))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reranked", 0),
        ("reranked", -5),
        ("reranked", 1),
        ("neighbors", 0),
        ("recall", float("nan")),
        ("lower", "all"),
        ("measured_at", 0.5),
        ("queries", -1),
        ("key_step", -1),
        ("noise_id", -2),
        ("method", 7),
        ("count", -COUNT),
        ("count", 10**30),
        ("kb_id", 7),
        ("sha256", {"rows.safetensors": 7}),
    ],
)
def test_a_field_of_the_index_that_nothing_wrote_is_told_and_not_believed(
    path: Path, field: str, value: object
) -> None:
    file = read_facts(path / "index")[0] / "index.json"
    fields = json.loads(file.read_text())
    fields.pop("checksum")  # a stranger's may be right, or not be there
    (part,) = fields["parts"]
    for place in (fields, part, *part["measured"]):
        place.update({field: value} if field in place else {})
    file.write_text(json.dumps(fields))
    base = KnowledgeBase.open(path)
    with pytest.warns(RediWarning, match="search is exact"):
        check_search(path, base)


@pytest.mark.parametrize("neighbors", [2, 700], ids=["by codes", "by a scan"])
@pytest.mark.parametrize("damaged", [COUNT, 1], ids=["all", "one"])
def test_a_copy_of_keys_that_is_not_finite_is_told_and_not_searched(path: Path, damaged: int, neighbors: int) -> None:
    queries = keys(UNIT, 2)[:4]  # the nearest of the first is an entry whose copy is damaged
    rows, distances = exact(path, queries, neighbors)
    copy = next(path.glob("index/rows-*/key_1.f16"))
    data, first = bytearray(copy.read_bytes()), 2 * 256 * (2 * UNIT if damaged == 1 else 0)
    data[first : first + 2 * 256 * damaged] = b"\xff" * 2 * 256 * damaged
    copy.write_bytes(data)
    base = KnowledgeBase.open(path)
    with pytest.warns(RediWarning, match=r"(?s)search is exact.*not finite.*redi index --rebuild"):
        found = base.search(queries, [0] * 4, neighbors, 1)
    assert found.rows[0, 0] == 2 * UNIT
    assert torch.equal(found.rows.sort(dim=1).values, rows.sort(dim=1).values)
    assert torch.allclose(found.distances.double(), distances, atol=1e-5)
    index(KnowledgeBase.open(path), rebuild=True)
    assert indexes(KnowledgeBase.open(path))


def _search_measured(path: Path, results: Any) -> None:
    base, before = KnowledgeBase.open(path), peak_megabytes()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        base.search(keys(4, 1000), [0] * 4, 2, 1)
    results.put((peak_megabytes() - before, [str(each.message) for each in told]))


@pytest.mark.parametrize(
    ("name", "count"),
    [("rows.safetensors", COUNT), ("rows.safetensors", 10**9), ("key_1_noise_0.safetensors", COUNT)],
    ids=["rows", "rows of many entries", "coder"],
)
def test_a_file_of_the_index_that_is_too_large_is_not_read(path: Path, name: str, count: int) -> None:
    """A sparse file costs a stranger nothing, and its checksum may be right."""
    folder = read_facts(path / "index")[0]
    os.truncate(folder / name, 3 << 29)
    fields = json.loads((folder / "index.json").read_text())
    fields.pop("checksum")
    fields["count"] = count
    fields["sha256"][name] = hash_of(folder / name)
    (folder / "index.json").write_text(json.dumps(fields))
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_search_measured, args=(path, results))
    process.start()
    grown, told = results.get(timeout=120)
    process.join()
    assert grown < 500
    assert len(told) == 1
    assert "search is exact" in told[0]
    assert f"{3 << 29} bytes" in told[0] or "an index of 1000000000 entries" in told[0]


def test_an_index_of_other_entries_is_not_used(path: Path, indexed: Path, tmp_path: Path) -> None:
    manifest = KnowledgeBase.open(path).manifest  # with the id of the base that the index is of
    other = KnowledgeBase.create(tmp_path / "other", manifest, NoiseBank.draw((3,), SHAPE), {})
    for unit in range(COUNT // UNIT):
        add(other, unit, rank=47)
    shutil.copytree(indexed / "index", tmp_path / "other/index", dirs_exist_ok=True)
    opened = KnowledgeBase.open(tmp_path / "other")
    assert not indexes(opened)
    check_search(tmp_path / "other", opened)


def test_a_second_indexer_is_refused(path: Path) -> None:
    from redi.knowledge_base.ledger import BuilderLock

    with BuilderLock(path / "index/lock").held(), pytest.raises(KnowledgeBaseError, match="built by"):
        index(KnowledgeBase.open(path))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run the command line and return what it printed."""
    app([*map(str, arguments)], standalone_mode=False)
    return capsys.readouterr().out


def test_a_small_base_gets_no_index(tmp_path: Path, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(path / "index")
    assert "every search is exact" in run(capsys, "index", path)
    assert not (path / "index/CURRENT").exists()


def test_redi_index_tells_what_was_chosen(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(run(capsys, "index", path, "--show", "--json"))
    assert told["entries in the index"] == COUNT
    assert told["parts"][0]["measured"][0]["recall"] >= 0.99


@pytest.mark.parametrize(
    "pattern",
    [
        "CURRENT",
        "v-*/index.json",
        "v-*/rows.safetensors",
        "v-*/key_1*.codes",
        "v-*/key_1*.safetensors",
        "rows-*/key_1.f16",
        "rows-*/value_4.f16",
    ],
)
def test_verifying_finds_a_changed_byte_of_any_file_of_an_index(path: Path, pattern: str) -> None:
    assert KnowledgeBase.open(path).verify().clean
    file = next((path / "index").glob(pattern))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert not KnowledgeBase.open(path).verify().clean


def test_verifying_finds_another_figure_in_what_an_index_says_of_itself(path: Path) -> None:
    file = read_facts(path / "index")[0] / "index.json"
    text = file.read_text()
    changed = re.sub(r'("reranked": )\d+', r"\g<1>2000", text, count=1)
    assert changed != text
    file.write_text(changed)
    assert not KnowledgeBase.open(path).verify().clean
