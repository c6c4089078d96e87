"""Claims about values of fewer bits: how large they are, how far off, and that a base of them is a base like others."""

from __future__ import annotations

import json
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from typer.testing import CliRunner

from redi.cli.app import app
from redi.errors import InputError, KnowledgeBaseError
from redi.knowledge_base import KnowledgeBase, compare_files
from redi.knowledge_base.codec import CODECS
from redi.knowledge_base.rows import crcs
from small_base import ROWS, SHAPE, filled, unit_batch

BITS = {"float16": 16, "int8": 8.25, "nf4": 4.5}
RELATIVE = {"float16": 0.0, "int8": 0.007, "nf4": 0.09}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> KnowledgeBase:
    made = filled(tmp_path_factory.mktemp("codec") / "base")
    made.finish()
    return made


@pytest.fixture(scope="module", params=["int8", "nf4"])
def small(base: KnowledgeBase, request: pytest.FixtureRequest) -> KnowledgeBase:
    folder = base.path.parent / request.param
    base.save_pretrained(folder, values=request.param)
    return KnowledgeBase.open(folder)


@pytest.mark.parametrize("name", CODECS)
def test_a_number_takes_the_bits_that_are_promised(name: str) -> None:
    assert CODECS[name].width(16384) * 8 == BITS[name] * 16384
    assert CODECS[name].encode(np.zeros((3, 16384), np.float16)).shape == (3, CODECS[name].width(16384))


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("size", [64, 4096, 77, 1])
def test_gaussian_numbers_come_back_as_near_as_promised(name: str, size: int) -> None:
    numbers = np.random.default_rng(0).standard_normal((8, size)).astype(np.float16)
    back = CODECS[name].decode(CODECS[name].encode(numbers), size)
    assert back.shape == numbers.shape
    assert back.dtype == np.float16
    apart = np.linalg.norm(back.astype(float) - numbers) / np.linalg.norm(numbers.astype(float))
    assert apart <= RELATIVE[name]


FINITE = st.floats(-65504, 65504, width=16, allow_nan=False)


@pytest.mark.parametrize("name", CODECS)
@example(numbers=np.array([[50848.0, 32240.0]], dtype=np.float16))
@given(numbers=arrays.arrays(np.float16, st.tuples(st.integers(0, 3), st.integers(1, 70)), elements=FINITE))
def test_any_finite_numbers_come_back_finite_and_within_a_step(name: str, numbers: np.ndarray) -> None:
    back = CODECS[name].decode(CODECS[name].encode(numbers), numbers.shape[1])
    assert np.isfinite(back).all()
    if numbers.size:
        # int8: half a place of 127, and the roundings of the scale and of the number that comes back to float16
        share = {"float16": 0, "int8": 1 / 254 + 2 / 2048, "nf4": 0.3}[name]
        step = share * float(np.abs(numbers).max())
        assert np.abs(back.astype(float) - numbers.astype(float)).max() <= step + 1e-5


@pytest.mark.parametrize("name", ["int8", "nf4"])
@given(data=st.data())
def test_any_bytes_are_numbers_or_are_seen_not_to_be(name: str, data: st.DataObject) -> None:
    codec = CODECS[name]
    payload = data.draw(arrays.arrays(np.uint8, (2, codec.width(70))))
    assert codec.decode(payload, 70).shape == (2, 70)


def test_a_base_of_fewer_bits_has_the_same_entries_and_keys(base: KnowledgeBase, small: KnowledgeBase) -> None:
    rows = range(len(base))
    assert small.entries(rows) == base.entries(rows)
    assert torch.equal(small.keys(rows, 2), base.keys(rows, 2))
    assert torch.equal(small.leave_one_out(1), base.leave_one_out(1))
    found, expected = (each.search(torch.zeros(1, *SHAPE), [0], 2, 1) for each in (small, base))
    assert torch.equal(found.rows, expected.rows)


def test_its_values_are_near(base: KnowledgeBase, small: KnowledgeBase) -> None:
    rows = range(len(base))
    for step in base.plan.value_steps:
        near, exact = small.values(rows, step), base.values(rows, step)
        assert 0 < (near - exact).norm() / exact.norm() <= RELATIVE[small.manifest.values]
        assert torch.equal(small.pairs(rows, 1, step)[1], near)


def test_it_is_smaller_verifiable_and_signed(base: KnowledgeBase, small: KnowledgeBase) -> None:
    assert small.verify().clean
    assert compare_files(small.path) == []
    name = small.manifest.values
    said = CliRunner().invoke(app, ["inspect", str(small.path)]).output
    assert f"value after step 7: {CODECS[name].width(64)} ({name})" in said
    assert "key after step 1: 128 (float16)" in said


def test_what_is_common_to_a_noise_costs_no_precision(tmp_path: Path) -> None:
    """Values are kept as differences to what their noise comes to on average, which is most of an early value."""
    made = filled(tmp_path / "base")
    batch, common = unit_batch(8, rows=60), unit_batch(9).values[4][0]
    for step, values in batch.values.items():
        batch.values[step] = common + 0.01 * values  # type: ignore[index]
    made.add_unit(8, batch)
    made.save_pretrained(tmp_path / "base4", values="nf4")
    rows = range(4 * ROWS, 4 * ROWS + 60)
    apart = KnowledgeBase.open(tmp_path / "base4").values(rows, 4) - made.values(rows, 4)
    assert apart.norm() / made.values(rows, 4).norm() < 0.03


def test_it_can_be_built_on(small: KnowledgeBase, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path / "more")
    more = KnowledgeBase.open(tmp_path / "more")
    more.add_unit(7, unit_batch(7))
    assert more.verify().clean
    exact = unit_batch(7).values[7]
    near = more.values(range(4 * ROWS, 5 * ROWS), 7)
    assert (near - exact).norm() / exact.norm() <= 2 * RELATIVE[small.manifest.values]


def test_one_damaged_byte_of_it_is_noticed(small: KnowledgeBase, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path / "damaged")
    payload = (
        CODECS[small.manifest.values]
        .encode(
            (small.values([5], 7) - small._noises.reference(7, torch.tensor([small.entries([5])[0].noise_id])))
            .half()
            .reshape(1, -1)
            .numpy()
        )
        .tobytes()
    )
    for file in (tmp_path / "damaged/entries.lance/data").iterdir():
        data = file.read_bytes()
        file.write_bytes(data.replace(payload[-16:], payload[-16:-1] + bytes([payload[-1] ^ 1])))
    damaged = KnowledgeBase.open(tmp_path / "damaged")
    assert damaged.verify().damaged == ("row 5: value_7 does not match its checksum",)
    with pytest.raises(KnowledgeBaseError, match="value_7 of row 5"):
        damaged.values([5], 7)


def test_a_scale_that_is_no_number_is_never_served(small: KnowledgeBase, tmp_path: Path) -> None:
    """As a stranger would write it, with a checksum that fits."""
    small.save_pretrained(tmp_path / "nan")
    table = lance.dataset(str(tmp_path / "nan/entries.lance")).to_table()
    payload = np.full((table.num_rows, CODECS[small.manifest.values].width(64)), 0xFF, dtype=np.uint8)
    for name, array in (
        ("value_7", pa.FixedSizeListArray.from_arrays(pa.array(payload.reshape(-1)), payload.shape[1])),
        ("value_7_crc", pa.array(crcs(payload))),
    ):
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), array)
    lance.write_dataset(table, str(tmp_path / "nan/entries.lance"), mode="overwrite", data_storage_version="2.2")
    with pytest.raises(KnowledgeBaseError, match="value_7 of row 0 is not finite"):
        KnowledgeBase.open(tmp_path / "nan").values([0], 7)


def test_bits_that_are_gone_do_not_come_back(small: KnowledgeBase, tmp_path: Path) -> None:
    with pytest.raises(KnowledgeBaseError, match="start from the base as it was recorded"):
        small.save_pretrained(tmp_path / "copy", values="float16")
    with pytest.raises(InputError, match="values 'int3'"):
        small.save_pretrained(tmp_path / "copy", values="int3")


def test_a_base_from_before_codecs_is_read_as_it_was_written(base: KnowledgeBase, tmp_path: Path) -> None:
    base.save_pretrained(tmp_path / "old")
    text = (tmp_path / "old/manifest.json").read_text()
    assert '  "values": "float16",\n' in text
    (tmp_path / "old/manifest.json").write_text(text.replace('  "values": "float16",\n', ""))
    assert torch.equal(KnowledgeBase.open(tmp_path / "old").values([3], 7), base.values([3], 7))


def test_every_codec_on_offer_costs_at_most_one_percent_in_the_committed_study() -> None:
    study = json.loads((Path(__file__).parents[1] / "results/small/smaller.json").read_text())
    exact = {row["label"]: row for row in study["rows"]}
    assert {row["sampling"]["jump"]["recording"].get("values") for row in study["rows"]} == set(CODECS)
    for claim in study["claims"]:
        loss = claim["difference"]["value"] / exact[claim["rival"]][claim["measure"]]["value"]
        assert (-loss if claim["measure"] == "faithfulness" else loss) <= 0.01, claim["ours"]
