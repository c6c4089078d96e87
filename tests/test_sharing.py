"""Claims about sharing: a copy is the same base, a part of it can be fetched and verified, the hub gives it back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from hub_server import serving
from redi.cli.app import app
from redi.errors import InputError, KnowledgeBaseError, PlanError
from redi.knowledge_base import KnowledgeBase, compare_files, read_hashes, sharing
from redi.knowledge_base.card import card_of
from small_base import ROWS, check_contents, create, filled, manifest, unit_batch

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> KnowledgeBase:
    made = filled(tmp_path_factory.mktemp("sharing") / "base")
    spoilt = unit_batch(9)
    spoilt.keys[1][:] = float("nan")
    made.add_unit(9, spoilt)
    made.finish()
    return made


# Copies


def test_a_saved_base_is_the_same_base(base: KnowledgeBase, tmp_path: Path) -> None:
    base.save_pretrained(tmp_path / "copy")
    copied = KnowledgeBase.from_pretrained(tmp_path / "copy")
    check_contents(copied, 4)
    assert copied.manifest == base.manifest
    assert copied.refused() == base.refused()
    assert copied.completed_units() == base.completed_units()
    assert torch.equal(copied.leave_one_out(1), base.leave_one_out(1))
    assert compare_files(copied.path) == []


def test_a_copy_can_be_built_on(base: KnowledgeBase, tmp_path: Path) -> None:
    base.save_pretrained(tmp_path / "copy")
    copied = KnowledgeBase.open(tmp_path / "copy")
    copied.add_unit(4, unit_batch(4))
    copied.finish()
    check_contents(KnowledgeBase.open(tmp_path / "copy"), 5)


def test_an_empty_base_can_be_saved(tmp_path: Path) -> None:
    create(tmp_path / "empty").save_pretrained(tmp_path / "copy")
    assert len(KnowledgeBase.open(tmp_path / "copy")) == 0


def test_a_copy_of_one_value_step_is_smaller_and_verifiable(base: KnowledgeBase, tmp_path: Path) -> None:
    base.save_pretrained(tmp_path / "one", value_steps=[7])
    one = KnowledgeBase.open(tmp_path / "one")
    rows = range(len(base))
    assert one.plan.value_steps == (7,)
    assert torch.equal(one.values(rows, 7), base.values(rows, 7))
    assert torch.equal(one.keys(rows, 2), base.keys(rows, 2))
    assert one.verify().clean
    assert compare_files(one.path) == []
    hashes = read_hashes(one.path)
    assert hashes is not None
    assert {each.value_step for each in hashes.files.values()} == {None, 7}
    with pytest.raises(PlanError, match="value_step=4"):
        one.values([0], 4)


def test_a_value_step_that_is_not_recorded_is_refused(base: KnowledgeBase, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="value_step=5"):
        base.save_pretrained(tmp_path / "copy", value_steps=[5])
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("steps", [7, 0, 7.0, iter([7])])
def test_value_steps_that_are_no_list_are_refused(base: KnowledgeBase, tmp_path: Path, steps: Any) -> None:
    with pytest.raises(PlanError, match="a list of value steps"):
        base.save_pretrained(tmp_path / "copy", value_steps=steps)
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("place", [None, 3, b"base"])
def test_what_is_no_path_is_no_place_of_a_base(base: KnowledgeBase, place: Any) -> None:
    for use in (KnowledgeBase.open, KnowledgeBase.exists, KnowledgeBase.check_free, create, base.save_pretrained):
        with pytest.raises(KnowledgeBaseError, match="s3://bucket/name"):
            use(place)


def test_damage_is_not_copied(base: KnowledgeBase, tmp_path: Path) -> None:
    base.save_pretrained(tmp_path / "copy")
    stored = base.values([3], 7).half().numpy().tobytes()
    for file in (tmp_path / "copy/entries.lance/data").iterdir():
        data = file.read_bytes()
        file.write_bytes(data.replace(stored, stored[:-1] + bytes([stored[-1] ^ 1])))
    with pytest.raises(KnowledgeBaseError, match="was changed"):
        sharing.save(tmp_path / "copy", tmp_path / "again")
    (tmp_path / "copy/hashes.json").unlink()
    with pytest.raises(KnowledgeBaseError, match="row 3: value_7 does not match"):
        sharing.save(tmp_path / "copy", tmp_path / "again")
    assert not (tmp_path / "again/manifest.json").exists()


def test_a_folder_in_use_is_not_written_over(base: KnowledgeBase) -> None:
    with pytest.raises(KnowledgeBaseError, match="holds a knowledge base already"):
        base.save_pretrained(base.path)


@pytest.mark.parametrize("name", ["nowhere", "/no/such/folder", "a/b/c", "../up", "a b/c", None])
def test_what_is_no_folder_and_no_hub_id_is_refused(name: Any) -> None:
    with pytest.raises(InputError, match="is no folder and no hub id"):
        KnowledgeBase.from_pretrained(name)


def test_what_is_no_folder_and_no_hub_id_is_not_copied(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="None is no folder and no hub id"):
        sharing.save(None, tmp_path / "copy")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["foo", None, str(HERE)])
def test_a_base_is_not_pushed_to_what_is_no_hub_id(base: KnowledgeBase, name: Any) -> None:
    with pytest.raises(InputError, match=rf"{name!r} is no hub id(.|\n)*owner/name"):
        base.push_to_hub(name)


def test_a_folder_has_no_revisions(base: KnowledgeBase) -> None:
    with pytest.raises(InputError, match="revision"):
        KnowledgeBase.from_pretrained(base.path, revision="main")


def test_without_a_network_the_error_says_what_to_do() -> None:
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        KnowledgeBase.from_pretrained("nobody/nothing-of-the-kind")


# The card


def test_the_card_tells_model_plan_sizes_and_quality(base: KnowledgeBase, tmp_path: Path) -> None:
    base.save_pretrained(tmp_path / "copy")
    hashes = read_hashes(tmp_path / "copy")
    assert hashes is not None
    card = card_of(base, "me/base", hashes, license="apache-2.0", quality={"Frechet": {"plain": 1.5, "redi": 2}})
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "apache-2.0"
    assert front["size_categories"] == ["n<1K"]
    for part in ("| value steps | 4, 7 |", hashes.signature, "plain: 1.5<br>redi: 2", "bytes an entry", "median"):
        assert part in card


def test_a_card_without_licence_and_figures_says_so(base: KnowledgeBase, tmp_path: Path) -> None:
    base.save_pretrained(tmp_path / "copy")
    hashes = read_hashes(tmp_path / "copy")
    assert hashes is not None
    card = card_of(base, "me/base", hashes)
    assert "license" not in yaml.safe_load(card.split("---\n")[1])
    assert "Of this base: none was given" in card
    assert "None were given." in card


def test_a_card_does_not_tell_where_the_model_was_on_a_disk(base: KnowledgeBase, tmp_path: Path) -> None:
    base.save_pretrained(tmp_path / "copy")
    fields = json.loads((tmp_path / "copy/manifest.json").read_text())
    fields["identity"] = {"information": {"model": "/home/somebody/models/mine"}}
    (tmp_path / "copy/manifest.json").write_text(json.dumps(fields))
    hashes = read_hashes(tmp_path / "copy")
    assert hashes is not None
    card = card_of(KnowledgeBase.open(tmp_path / "copy"), "me/base", hashes)
    assert "| model | a folder called mine |" in card
    assert "somebody" not in card


def test_nothing_of_a_manifest_breaks_out_of_its_place_in_the_card(base: KnowledgeBase, tmp_path: Path) -> None:
    base.save_pretrained(tmp_path / "copy")
    fields = json.loads((tmp_path / "copy/manifest.json").read_text())
    fields["identity"] = {"pipeline": "a | b\n---\n# c <script>[x](y)`", "information": {"model": "evil/x: y\n- z"}}
    (tmp_path / "copy/manifest.json").write_text(json.dumps(fields))
    hashes = read_hashes(tmp_path / "copy")
    assert hashes is not None
    card = card_of(KnowledgeBase.open(tmp_path / "copy"), "me/base", hashes)
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == ["evil/x: y\n- z"]
    assert "<script>" not in card
    (line,) = [line for line in card.splitlines() if line.startswith("| pipeline")]
    assert line.count("|") == 3


# The hub: its own client, in a process of its own, against a server that speaks its protocol


@dataclass(frozen=True)
class Exchange:
    """What a process that pushed and pulled printed, and what the server then held and had given."""

    said: dict[str, Any]
    commits: list[dict[str, bytes]]
    private: bool
    fetched: list[str]
    folder: Path


SCRIPT = """
import json, shutil, sys
from pathlib import Path
from redi.errors import InputError
from redi.knowledge_base import KnowledgeBase, sharing

source, folder = Path(sys.argv[1]), Path(sys.argv[2])
said = {}
said["address"] = KnowledgeBase.open(source).push_to_hub("me/base", private=True, license="apache-2.0")
whole = KnowledgeBase.from_pretrained("me/base")
said["entries"], said["clean"] = len(whole), whole.verify().clean
said["distances"] = len(whole.leave_one_out(1))
said["commit"] = whole.path.name
shutil.rmtree(folder / "cache")
print("PARTIAL", flush=True)
sys.stdin.readline()
said["signature"] = sharing.save("me/base", folder / "one", value_steps=[7], revision=said["commit"]).signature
KnowledgeBase.open(folder / "one").push_to_hub("me/base")
again = KnowledgeBase.from_pretrained("me/base")
said["steps_again"] = again.plan.value_steps
try:
    KnowledgeBase.from_pretrained("me/base", revision="0" * 40)
except InputError as error:
    said["refused"] = str(error)
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def exchange(base: KnowledgeBase, tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    folder = tmp_path_factory.mktemp("exchange")
    settings = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "cache"), "HF_TOKEN": "hf_x", "HF_HUB_DISABLE_XET": "1"}
    with serving() as hub:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(base.path), str(folder)],
            env={**os.environ, **settings, "HF_ENDPOINT": hub.address},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first == "PARTIAL\n", first
        hub.fetched.clear()
        process.stdin.write("go on\n")
        process.stdin.flush()
        said = json.loads(process.communicate()[0])
        fetched = hub.fetched[: hub.fetched.index("README.md")]
        return Exchange(said, hub.commits["me/base"], hub.private["me/base"], fetched, folder)


def test_a_base_comes_back_from_the_hub(exchange: Exchange) -> None:
    assert exchange.said["address"].endswith("/datasets/me/base")
    assert exchange.private
    assert exchange.said["entries"] == 4 * ROWS
    assert exchange.said["clean"]
    assert exchange.said["distances"] == 4 * ROWS
    assert b"license: apache-2.0" in exchange.commits[1]["README.md"]
    assert not any(name.startswith(("lock", "previews")) for name in exchange.commits[1])


def test_only_the_files_of_the_value_step_asked_for_are_fetched(exchange: Exchange) -> None:
    hashes = json.loads(exchange.commits[1]["hashes.json"])["files"]
    other = {name for name, each in hashes.items() if each.get("value_step") == 4}
    assert other
    assert not other & set(exchange.fetched)
    assert {name for name, each in hashes.items() if each.get("value_step") == 7} <= set(exchange.fetched)
    assert KnowledgeBase.open(exchange.folder / "one").verify().clean


def test_a_base_pushed_again_leaves_no_file_of_the_one_before(exchange: Exchange) -> None:
    listed = set(json.loads(exchange.commits[-1]["hashes.json"])["files"])
    assert set(exchange.commits[-1]) - listed == {"hashes.json", "README.md"}
    assert exchange.said["steps_again"] == [7]


def test_a_revision_that_the_hub_does_not_have_is_refused(exchange: Exchange) -> None:
    assert "cannot fetch me/base" in exchange.said["refused"]


# The commands


def test_pull_copies_a_folder_and_tells_its_signature(base: KnowledgeBase, tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["pull", str(base.path), str(tmp_path / "copy"), "--value-step", "4"])
    assert found.exit_code == 0, found.output
    hashes = read_hashes(tmp_path / "copy")
    assert hashes is not None
    assert hashes.signature in found.output
    assert KnowledgeBase.open(tmp_path / "copy").plan.value_steps == (4,)


def test_push_without_a_network_ends_in_one_line(base: KnowledgeBase) -> None:
    found = CliRunner().invoke(app, ["push", str(base.path), "me/base", "--license", "apache-2.0"])
    assert found.exit_code == 1
    assert "error: cannot put" in found.output
    assert sorted(file.name for file in base.path.parent.iterdir()) == ["base"]
    assert manifest().kb_id != base.manifest.kb_id
