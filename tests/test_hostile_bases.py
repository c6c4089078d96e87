"""Claims about bases from strangers: whatever is in the folder, reading it ends in numbers or in redi's own errors."""

from __future__ import annotations

import ast
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from damaging import Victim, copy, limit_memory, peak_megabytes, read_everything
from redi.errors import KnowledgeBaseError
from redi.knowledge_base import KnowledgeBase
from redi.knowledge_base.rows import crcs
from redi.knowledge_base.table_form import check_count
from small_base import ROWS, SHAPE, filled, unit_batch

PROCESSES = multiprocessing.get_context("spawn")
MOST_MEGABYTES = 1024
HUGE = 10**30
UNPICKLERS = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Victim:
    return Victim(tmp_path_factory.mktemp("hostile"))


@pytest.fixture
def base(victim: Victim, tmp_path: Path) -> Path:
    return copy(victim, tmp_path / "copy")


def refused(folder: Path, said: str) -> None:
    with pytest.raises(KnowledgeBaseError, match=said) as caught:
        KnowledgeBase.open(folder)
    assert caught.value.expected
    assert len(str(caught.value)) < 3000


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    fields = json.loads((folder / "manifest.json").read_text())
    change(fields)
    (folder / "manifest.json").write_text(json.dumps(fields))


# The manifest


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("format_version", HUGE, "format version"),
        ("format_version", "1", "format version"),
        ("latent_shape", [2**40, 2**40], "at most 8 axes"),
        ("latent_shape", [1] * 1000, "at most 8 axes"),
        ("latent_shape", [4, 4, 5], "not match the checksum|bank|bytes|not fixed_size_list"),
        ("latent_shape", "x" * 100_000, "characters"),
        ("kb_id", "../../../etc/passwd", "kb_id"),
        ("created", ["now"] * 10_000, "characters"),
        ("plan", {"num_inference_steps": HUGE, "key_step": 1, "value_steps": list(range(2, 2000))}, "at most 1000"),
        ("plan", {"num_inference_steps": 10, "key_step": {}, "value_steps": 3}, "plan"),
        ("plan", {"x" * 100_000: 1}, "plan"),
        ("plan", {"num_inference_steps": 10, "key_step": 1, "value_steps": [8]}, "holds|missing"),
        ("noise", {"kind": ["shared"], "seeds": []}, "noise kind"),
        ("noise", {"kind": "shared", "seeds": [3, 5, 8], "sha256": "x"}, "checksum"),
        ("noise", {"kind": "shared", "seeds": [3, 5, 8], "sha256": {"bank": ["x"]}}, "checksum"),
        ("noise", {"kind": "shared", "seeds": [HUGE]}, "seeds"),
        ("values", "pickle", "values"),
        ("values", {"nf4": 1}, "values"),
        ("values", "int8", "holds"),
        ("identity", [], "identity"),
        ("identity", json.loads('{"a":' * 500 + "1" + "}" * 500), "nested deeper"),
        ("identity", {"guidance": float("nan")}, "finite"),
        ("identity", {"guidance": float("inf")}, "finite"),
    ],
)
def test_a_manifest_of_nonsense_is_refused(base: Path, field: str, value: object, said: str) -> None:
    change_manifest(base, lambda fields: fields.update({field: value}))
    refused(base, said)


def test_a_manifest_of_a_hundred_megabytes_is_not_read(base: Path) -> None:
    os.truncate(base / "manifest.json", 100_000_000)
    refused(base, "100000000 bytes")


@pytest.mark.parametrize("kind", ["pipe", "endless", "folder"])
def test_a_manifest_that_is_no_plain_file_is_not_read(base: Path, kind: str) -> None:
    place = base / "manifest.json"
    place.unlink()
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "endless":
        place.symlink_to("/dev/zero")
    else:
        place.mkdir()
    refused(base, "no plain file|link to /dev/zero|no knowledge base")


# Noises and what is derived


@pytest.mark.parametrize("which", ["bank", "references"])
@pytest.mark.parametrize("spoilt", ["nan", "shape", "dtype", "name", "sparse"])
def test_noises_of_nonsense_are_refused_though_their_checksum_is_right(base: Path, which: str, spoilt: str) -> None:
    file = base / f"noise/{which}.safetensors"
    name = "latents" if which == "bank" else "key_1"
    latents = {"nan": torch.full((3, *SHAPE), torch.nan), "shape": torch.zeros(3, 2), "dtype": torch.zeros(3, *SHAPE)}
    tensor = latents.get(spoilt, torch.zeros(3, *SHAPE)).to(torch.float16 if spoilt == "dtype" else torch.float32)
    made = {name if spoilt != "name" else "../key_x": tensor}
    if which == "references" and spoilt != "name":
        made["key_2"] = tensor.clone()
    data = save(made)
    file.write_bytes(data)
    if spoilt == "sparse":
        os.truncate(file, 1 << 40)  # a terabyte of nothing
    digests = {"bank": sha256((base / "noise/bank.safetensors").read_bytes()).hexdigest()} if spoilt != "sparse" else {}
    if spoilt != "sparse":
        digests["references"] = sha256((base / "noise/references.safetensors").read_bytes()).hexdigest()
    change_manifest(base, lambda fields: fields["noise"].update(sha256=digests))
    refused(base, "noise|latents|holds|bytes")


@pytest.mark.parametrize("spoilt", ["nan", "shape", "dtype", "sparse"])
def test_derived_distances_of_nonsense_are_refused(base: Path, spoilt: str) -> None:
    opened = KnowledgeBase.open(base)
    stamp = torch.tensor([*bytes.fromhex(opened.manifest.kb_id), len(opened)])
    wrong = {"nan": torch.full((5,), torch.nan), "shape": torch.zeros(5, 5), "dtype": torch.zeros(5).double()}
    file = base / "index/leave_one_out.safetensors"
    file.write_bytes(save({"key_1": wrong.get(spoilt, torch.zeros(5)), "stamp": stamp}))
    if spoilt == "sparse":
        os.truncate(file, 1 << 40)
    with pytest.raises(KnowledgeBaseError, match=r"finite float32s|bytes"):
        opened.leave_one_out(1)


def test_an_index_that_points_past_the_table_is_refused(base: Path) -> None:
    class Beyond:
        def __init__(self, keys: torch.Tensor) -> None:
            self.count = len(keys)

        def search(self, queries: torch.Tensor, neighbors: int) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.full((len(queries), 1), self.count), torch.zeros(len(queries), 1)

    opened = KnowledgeBase.open(base, index=Beyond)
    with pytest.raises(KnowledgeBaseError, match="points to"):
        opened.search(torch.zeros(1, *SHAPE), [0], 1, 1)


# The ledger and the refused


@pytest.mark.parametrize(
    "line",
    [
        f'{{"version": {HUGE}}}',
        '{"version": -1}',
        '{"version": 1, "unit": true, "rows": 1, "refused": 0}',
        '{"version": NaN}',
        "[" * 10_000,
        '{"version": 1' + "0" * 5000 + "}",
        '"' + "x" * 100_000 + '"',
    ],
    ids=["huge", "negative", "true", "nan", "deep", "digits", "long"],
)
def test_a_ledger_line_of_nonsense_is_refused(base: Path, line: str) -> None:
    (base / "ledger/units.jsonl").write_text(line + "\n")
    refused(base, "line")


def test_a_ledger_of_a_terabyte_is_not_read(base: Path) -> None:
    os.truncate(base / "ledger/units.jsonl", 1 << 40)
    refused(base, "1099511627776 bytes")


@pytest.mark.parametrize("line", ['{"unit": Infinity, "slot": 0, "prompt": "", "reason": ""}', '{"unit": []}', "{}"])
def test_a_refusal_of_nonsense_is_refused(base: Path, line: str) -> None:
    (base / "refused.jsonl").write_text(line + "\n")
    with pytest.raises(KnowledgeBaseError, match="line"):
        KnowledgeBase.open(base).refused()


# The table


def rewritten(folder: Path, change: Callable[[Any], Any]) -> KnowledgeBase:
    """Write the table again with other rows, as a stranger who knows the format would, and open it."""
    place = str(folder / "entries.lance")
    table = change(lance.dataset(place).to_table())
    shutil.rmtree(place)
    lance.write_dataset(table, place, data_storage_version="2.2")
    (folder / "ledger/units.jsonl").unlink()
    return KnowledgeBase.open(folder)


def with_column(table: Any, name: str, values: Any) -> Any:
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)


def test_numbers_that_are_not_finite_are_never_served(base: Path) -> None:
    def spoil(table: Any) -> Any:
        latents = np.ones((table.num_rows, 64), dtype=np.float16)
        latents[1, 7], latents[2, 9] = np.nan, -np.inf
        column = pa.FixedSizeListArray.from_arrays(pa.array(latents.reshape(-1)), 64)
        return with_column(with_column(table, "value_7", column), "value_7_crc", pa.array(crcs(latents)))

    opened = rewritten(base, spoil)
    for row in (1, 2):
        with pytest.raises(KnowledgeBaseError, match=f"value_7 of row {row} is not finite"):
            opened.values([row], 7)
    assert opened.values([0], 7).isfinite().all()
    assert sum("not finite" in each for each in opened.verify().damaged) == 2


@pytest.mark.parametrize("noise_id", [3, 1_000_000, -2])
def test_a_noise_that_the_bank_does_not_hold_is_refused(base: Path, noise_id: int) -> None:
    opened = rewritten(
        base, lambda table: with_column(table, "noise_id", pa.array([noise_id] * table.num_rows, pa.int32()))
    )
    with pytest.raises(KnowledgeBaseError, match=rf"noises {noise_id} to"):
        opened.keys([0], 1)
    assert any("the bank does not hold" in each for each in opened.verify().damaged)


def test_rows_without_a_field_are_refused(base: Path) -> None:
    def spoil(table: Any) -> Any:
        field = pa.field("unit", pa.int64(), nullable=True)
        at = table.schema.get_field_index("unit")
        return table.set_column(at, field, pa.array([None] * table.num_rows, pa.int64()))

    with pytest.raises(KnowledgeBaseError, match="rows without unit"):
        rewritten(base, spoil).prompts([0])


def test_more_rows_than_there_are_bytes_are_refused(tmp_path: Path) -> None:
    rows = filled(tmp_path / "base")._table._dataset.to_table(columns=["unit", "slot", "noise_id", "seed"])
    repeated = rows.take(pa.array(np.zeros(500_000, dtype=np.int64)))
    table = lance.write_dataset(repeated, str(tmp_path / "bomb.lance"), data_storage_version="2.2")
    with pytest.raises(KnowledgeBaseError, match="claims 500000 rows"):
        check_count(table, tmp_path / "bomb.lance")


def test_a_table_whose_data_lies_elsewhere_is_refused(base: Path, tmp_path: Path) -> None:
    place = base / "entries.lance"
    elsewhere = shutil.copytree(place, tmp_path / "elsewhere.lance")
    shutil.rmtree(place)
    lance.dataset(str(elsewhere)).shallow_clone(str(place), lance.dataset(str(elsewhere)).version)
    (base / "ledger/units.jsonl").unlink()
    refused(base, "takes data from")


def test_a_data_file_named_outside_of_the_folder_is_refused(base: Path, tmp_path: Path) -> None:
    data = next((base / "entries.lance/data").iterdir()).name
    outside = "../../../" + "x" * (len(data) - 15) + ".lance"
    shutil.copy(base / "entries.lance/data" / data, (base / "entries.lance/data" / outside).resolve())
    newest = min((base / "entries.lance/_versions").glob("*.manifest"))
    newest.write_bytes(newest.read_bytes().replace(data.encode(), outside.encode()))
    with pytest.raises(KnowledgeBaseError, match=r"names the file '\.\./"):
        KnowledgeBase.open(base).check_files()
    with pytest.raises(KnowledgeBaseError, match="cannot read"):
        KnowledgeBase.open(base).prompts(range(6 * ROWS - 1))


# Links


@pytest.mark.parametrize("name", ["manifest.json", "entries.lance", "entries.lance/data", "noise", "index/other"])
def test_a_link_out_of_the_folder_is_not_followed(base: Path, tmp_path: Path, name: str) -> None:
    away = tmp_path / "away"
    if (base / name).exists():
        (base / name).rename(away)
    (base / name).symlink_to(away)
    refused(base, "is a link to")


def test_a_builder_writes_through_no_link(base: Path, tmp_path: Path) -> None:
    for name in ("lock", "ledger/units.jsonl", "previews"):
        precious = tmp_path / "precious"
        (base / name).unlink(missing_ok=True)
        precious.write_text("precious")
        (base / name).symlink_to(base / "manifest.json")  # inside: reading may follow it, writing may not
        with pytest.raises(KnowledgeBaseError, match=r"is a link to|line"):
            KnowledgeBase.open(base).add_unit(9, unit_batch(9))
        (base / name).unlink()
        assert precious.read_text() == "precious"
        assert json.loads((base / "manifest.json").read_text())["kb_id"]


def test_the_hub_s_cache_of_links_to_blobs_is_read(base: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    snapshot = shutil.copytree(base, cache / "snapshots/abc")
    (cache / "blobs").mkdir()
    for number, file in enumerate(sorted(file for file in snapshot.rglob("*") if file.is_file())):
        blob = cache / f"blobs/{number}"
        file.rename(blob)
        file.symlink_to(os.path.relpath(blob, file.parent))
    opened = KnowledgeBase.open(snapshot)
    assert opened.verify().clean
    with pytest.raises(KnowledgeBaseError, match="copy the base first"):
        opened.add_unit(9, unit_batch(9))


# Nothing is executed


def test_nothing_in_redi_loads_a_pickle_or_executes_text() -> None:
    for file in (Path(__file__).parents[1] / "src/redi").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
                assert not {module.partition(".")[0] for module in modules} & set(UNPICKLERS), f"{file}:{node.lineno}"
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                given = {each.arg: ast.unparse(each.value) for each in node.keywords}
                assert called not in ("eval", "exec", "compile", "__import__"), f"{file}:{node.lineno}"
                assert called != "torch.load" or given.get("weights_only") == "True", f"{file}:{node.lineno}"
                assert given.get("allow_pickle", "False") == "False", f"{file}:{node.lineno}"
                assert given.get("trust_remote_code", "False") == "False", f"{file}:{node.lineno}"


# Fuzzing


def damaged_files(names: list[str], whole: dict[str, bytes]) -> st.SearchStrategy[tuple[str, bytes]]:
    """Return one file of a base with some of its bytes changed, cut, doubled or replaced, or other JSON in it."""
    words = st.sampled_from([b"\xff" * 8, b"\x00" * 8, b"\xff" * 7 + b"\x7f", b"\x80", b"[" * 2000])

    @st.composite
    def changed(draw: st.DrawFn) -> tuple[str, bytes]:
        name = draw(st.sampled_from(names))
        data = bytearray(whole[name])
        for _ in range(draw(st.integers(1, 8))):
            at, what = draw(st.integers(0, len(data))), draw(st.integers(0, 3))
            word = draw(words | st.binary(min_size=1, max_size=8))
            if what == 0:
                data[at : at + len(word)] = word
            elif what == 1:
                del data[at:]
            elif what == 2:
                data[at:at] = data[at : at + draw(st.integers(1, 200))]
            else:
                data[at:at] = word
        return name, bytes(data)

    manifests = [name for name in names if name.endswith("manifest.json")]
    others = [st.tuples(st.just(name), other_json(json.loads(whole[name]))) for name in manifests]
    return st.one_of(changed(), *others)


def other_json(fields: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Return a manifest in which one field, at any depth, has another value."""
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.integers(2**62, 2**80)
    anything = st.recursive(leaves, lambda below: st.lists(below) | st.dictionaries(st.text(), below), max_leaves=6)
    paths = [(name,) for name in fields]
    paths += [(name, below) for name in fields if isinstance(fields[name], dict) for below in fields[name]]

    def put(path: tuple[str, ...], value: Any) -> bytes:
        made = json.loads(json.dumps(fields))
        place = made
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value
        return json.dumps(made).encode()

    return st.builds(put, st.sampled_from(paths), anything)


def fuzz(examples: int) -> None:
    """Run in a process of its own: an absurd allocation or a crash of native code ends it, and fails the test."""
    with tempfile.TemporaryDirectory() as folder:
        victim = Victim(Path(folder))
        assert read_everything(victim.path) == "read"
        limit_memory()

        @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(damaged_files(victim.names, victim.whole))
        def ends_in_numbers_or_in_errors_of_redi(damaged: tuple[str, bytes]) -> None:
            victim.outcome(*damaged)

        ends_in_numbers_or_in_errors_of_redi()
    assert peak_megabytes() < MOST_MEGABYTES


def test_whatever_the_bytes_are_reading_them_ends_in_numbers_or_in_errors_of_redi() -> None:
    process = PROCESSES.Process(target=fuzz, args=(250,))
    process.start()
    process.join()
    assert process.exitcode == 0
