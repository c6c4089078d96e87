"""Claims about content hashes: a changed, missing or added file is found, and so is a changed list."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from redi.cli.app import app
from redi.errors import KnowledgeBaseError
from redi.knowledge_base import KnowledgeBase, compare_files, read_hashes
from redi.knowledge_base.hashes import FileHash, FileHashes, signed_again
from redi.knowledge_base.upkeep import Where, merge, remove, split
from small_base import create, filled, unit_batch


@pytest.fixture
def base(tmp_path: Path) -> KnowledgeBase:
    made = filled(tmp_path / "base")
    made.finish()
    return made


def test_every_file_that_makes_a_base_is_listed_and_unchanged(base: KnowledgeBase) -> None:
    hashes = read_hashes(base.path)
    assert hashes is not None
    assert {"manifest.json", "index/leave_one_out.safetensors", "ledger/units.jsonl", "noise/bank.safetensors"} <= set(
        hashes.files
    )
    assert any(name.startswith("entries.lance/data/") for name in hashes.files)
    assert not any(name.startswith(("lock", "hashes.json")) for name in hashes.files)
    assert compare_files(base.path) == []


@pytest.mark.parametrize("name", ["manifest.json", "ledger/units.jsonl", "noise/bank.safetensors", "data"])
def test_one_changed_byte_of_any_file_is_found(base: KnowledgeBase, name: str) -> None:
    file = next((base.path / "entries.lance/data").iterdir()) if name == "data" else base.path / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    (said,) = compare_files(base.path)
    assert "was changed" in said
    assert file.name in said


def test_missing_grown_and_added_files_are_found(base: KnowledgeBase) -> None:
    (base.path / "ledger/units.jsonl").unlink()
    with open(base.path / "manifest.json", "a") as file:
        file.write(" ")
    (base.path / "entries.lance/data/more.lance").write_bytes(b"more")
    said = "\n".join(compare_files(base.path))
    for part in ("units.jsonl is missing", "manifest.json has", "more.lance is not in hashes.json"):
        assert part in said


def test_a_changed_list_does_not_sum_up_to_its_signature(base: KnowledgeBase) -> None:
    fields = json.loads((base.path / "hashes.json").read_text())
    fields["files"]["manifest.json"]["size"] += 1
    (base.path / "hashes.json").write_text(json.dumps(fields))
    with pytest.raises(KnowledgeBaseError, match="was changed"):
        compare_files(base.path)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "a//b", "./a", "", ".", "a\\b", "a\nb"])
def test_a_list_names_no_file_outside_of_the_folder(name: str) -> None:
    with pytest.raises(KnowledgeBaseError, match="cannot be read"):
        FileHashes.from_json(FileHashes({name: FileHash(1, "a" * 64)}).to_json())


def test_the_signature_depends_on_names_sizes_and_contents() -> None:
    one = {"a": FileHash(1, "a" * 64)}
    others = ({"b": FileHash(1, "a" * 64)}, {"a": FileHash(2, "a" * 64)}, {"a": FileHash(1, "b" * 64)}, {})
    signatures = {FileHashes(each).signature for each in (one, *others)}
    assert len(signatures) == 1 + len(others)


def test_a_base_that_grows_loses_its_list(base: KnowledgeBase) -> None:
    base.add_unit(9, unit_batch(9))
    assert read_hashes(base.path) is None


def test_what_changes_nothing_leaves_the_signature(base: KnowledgeBase) -> None:
    before = read_hashes(base.path)
    assert remove(base, Where.parse(["prompt=nothing like it"])) == []
    assert merge(base, filled(base.path.parent / "same")) == 0
    base.add_unit(0, unit_batch(0))
    base.remove([(99, 0)])
    with base.lock():
        pass
    assert read_hashes(base.path) == before


def test_upkeep_leaves_a_base_signed(base: KnowledgeBase) -> None:
    signatures = {base.path: read_hashes(base.path)}
    more = create(base.path.parent / "more")
    more.add_unit(7, unit_batch(7))
    for do in (
        lambda: remove(base, Where.parse(["unit=1"])),
        lambda: merge(base, more),
        lambda: split(base, Where.parse(["noise=1"]), base.path.parent / "part"),
        lambda: base.compact(),
    ):
        do()
        assert read_hashes(base.path) not in (None, signatures[base.path]), "another base is signed otherwise"
        assert compare_files(base.path) == []
        signatures[base.path] = read_hashes(base.path)
    assert read_hashes(base.path.parent / "part") is not None
    assert compare_files(base.path.parent / "part") == []


def test_a_file_of_the_table_that_was_damaged_before_a_base_is_signed_again_is_still_found(base: KnowledgeBase) -> None:
    file = next((base.path / "entries.lance/data").iterdir())
    whole = file.read_bytes()
    base.add_unit(9, unit_batch(9))
    file.write_bytes(bytes([whole[0] ^ 1, *whole[1:]]))
    base.sign()
    (said,) = compare_files(base.path)
    assert f"{file.name} was changed" in said
    file.write_bytes(whole)
    assert compare_files(base.path) == []
    assert not (base.path / "hashes.old.json").exists()


def test_signing_a_base_that_is_signed_hides_no_damage(base: KnowledgeBase) -> None:
    before = read_hashes(base.path)
    base.sign()
    assert read_hashes(base.path) == before
    file = next((base.path / "entries.lance/data").iterdir())
    whole = file.read_bytes()
    file.write_bytes(bytes([whole[0] ^ 1, *whole[1:]]))
    base.sign()
    (said,) = compare_files(base.path)
    assert f"{file.name} was changed" in said


def test_damage_of_the_table_is_found_though_a_change_took_the_list_away(base: KnowledgeBase) -> None:
    file = max((base.path / "entries.lance/data").iterdir(), key=lambda each: each.stat().st_size)
    whole = file.read_bytes()
    file.write_bytes(bytes(each ^ 1 if place == 200 else each for place, each in enumerate(whole)))
    with pytest.raises(KnowledgeBaseError):
        KnowledgeBase.open(base.path).compact()
    assert read_hashes(base.path) is None
    (said,) = compare_files(base.path)
    assert f"{file.name} was changed: it is not the file whose hash is in hashes.old.json" in said
    found = CliRunner().invoke(app, ["inspect", str(base.path), "--verify"])
    assert found.exit_code == 1
    assert said in " ".join(found.output.split())
    file.write_bytes(whole)
    KnowledgeBase.open(base.path).compact(grace=timedelta(0))
    assert compare_files(base.path) == []


def test_files_that_a_change_took_away_are_no_damage(base: KnowledgeBase) -> None:
    base.add_unit(9, unit_batch(9))
    file = next((base.path / "entries.lance/data").iterdir())
    file.unlink()
    assert compare_files(base.path) == []


@pytest.mark.parametrize("old", ["", "[", "{}", '{"version": 1, "signature": 7, "files": {"../a": {}}}'])
def test_an_old_list_that_does_not_read_is_not_believed(base: KnowledgeBase, old: str) -> None:
    base.add_unit(9, unit_batch(9))
    (base.path / "hashes.old.json").write_text(old)
    assert compare_files(base.path) == []
    base.sign()
    assert compare_files(base.path) == []


def test_a_ledger_that_is_written_again_from_the_table_leaves_no_list_that_says_otherwise(base: KnowledgeBase) -> None:
    (base.path / "ledger/units.jsonl").unlink()
    with KnowledgeBase.open(base.path).lock():
        pass
    assert compare_files(base.path) == []
    base.compact()
    assert read_hashes(base.path) is not None
    assert compare_files(base.path) == []


def test_a_change_is_begun_without_a_list_that_it_would_make_untrue(base: KnowledgeBase) -> None:
    with pytest.raises(OSError, match="the disk"), signed_again(base.path, "calibration.json"):
        raise OSError("the disk")
    assert read_hashes(base.path) is None


def test_a_file_that_is_replaced_is_signed_again_if_the_base_is(base: KnowledgeBase) -> None:
    for signed in (True, False):
        if not signed:
            base.add_unit(9, unit_batch(9))
        with signed_again(base.path, "calibration.json"):
            (base.path / "calibration.json").write_text("{}")
        assert (read_hashes(base.path) is not None) == signed
        assert compare_files(base.path) == []
        (base.path / "calibration.json").write_text("[]")
        assert bool(compare_files(base.path)) == signed, "a changed calibration is found"


def test_inspect_says_of_a_base_that_grew_that_it_is_not_signed(base: KnowledgeBase) -> None:
    base.add_unit(9, unit_batch(9))
    command = ["inspect", str(base.path), "--verify"]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.output
    assert "not signed: the base has changed" in " ".join(found.output.split())
    base.compact()
    found = CliRunner().invoke(app, command)
    assert "not signed" not in found.output


def test_inspect_tells_the_signature_and_verifies_every_file(base: KnowledgeBase) -> None:
    hashes = read_hashes(base.path)
    assert hashes is not None
    command = ["inspect", str(base.path), "--verify"]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.output
    assert hashes.signature in found.output
    with open(base.path / "manifest.json", "a") as file:
        file.write(" ")
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 1
    assert "manifest.json has" in found.output


def test_inspect_prints_nothing_of_a_stranger_s_base_that_steers_a_terminal(base: KnowledgeBase) -> None:
    fields = json.loads((base.path / "manifest.json").read_text())
    fields["identity"] = {"information": [], "scheduler": 3, "call": None, "pipeline": "\x1b[2J", "dtype": {"\x07": 1}}
    (base.path / "manifest.json").write_text(json.dumps(fields))
    found = CliRunner().invoke(app, ["inspect", str(base.path)])
    assert found.exit_code == 0, found.output
    assert "\\x1b[2J" in found.output
    assert "\x1b" not in found.output
    assert "\x07" not in found.output
