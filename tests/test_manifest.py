"""Claims about the manifest: it comes back as it was written, and says what is wrong when it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redi.errors import KnowledgeBaseError
from redi.knowledge_base import Manifest, describe_differences, differences
from redi.knowledge_base.manifest import MAX_BYTES
from small_base import manifest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(identity=st.dictionaries(st.text(), JSON, max_size=4))
def test_a_manifest_comes_back_as_it_was(identity: dict[str, object]) -> None:
    written = manifest(identity=identity)
    assert Manifest.from_json(written.to_json()) == written


def test_a_written_manifest_is_read(tmp_path: Path) -> None:
    written = manifest()
    written.write(tmp_path)
    assert Manifest.read(tmp_path) == written
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.json"]


def test_two_manifests_have_different_ids() -> None:
    assert manifest().kb_id != manifest().kb_id


def test_a_tuple_equals_the_list_that_it_is_stored_as() -> None:
    assert manifest(identity={"timesteps": (3, 2, 1)}).identity == {"timesteps": [3, 2, 1]}


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("format_version", 2, "format version 2"),
        ("format_version", "1", "format version '1'"),
        ("format_version", True, "format version True"),
        ("kb_id", "xyz", "kb_id 'xyz'"),
        ("created", "yesterday", "created 'yesterday'"),
        ("created", 5, "created 5"),
        ("plan", [1], "plan [1]"),
        ("plan", {"num_inference_steps": 5}, "plan"),
        ("plan", {"num_inference_steps": 5, "key_step": 4, "value_steps": [2]}, "not before value step"),
        ("latent_shape", [], "latent_shape []"),
        ("latent_shape", [4, 0, 8], "latent_shape [4, 0, 8]"),
        ("latent_shape", "488", "latent_shape '488'"),
        ("noise", {"kind": "loud", "seeds": [1]}, "noise kind 'loud'"),
        ("noise", {"kind": "shared", "seeds": []}, "without seeds"),
        ("noise", {"kind": "shared", "seeds": [1, 1]}, "twice"),
        ("noise", {"kind": "shared", "seeds": [-1]}, "noise seeds [-1]"),
        ("noise", [], "noise is a list"),
        ("identity", "tiny", "identity is a str"),
        ("library_versions", None, "library_versions is a NoneType"),
    ],
)
def test_a_wrong_field_is_named(field: str, value: object, said: str) -> None:
    fields = {**json.loads(manifest().to_json()), field: value}
    with pytest.raises(KnowledgeBaseError) as caught:
        Manifest.from_json(json.dumps(fields))
    assert said in str(caught.value)


@pytest.mark.parametrize("missing", ["kb_id", "plan", "noise", "identity", "latent_shape", "created"])
def test_a_missing_field_is_named(missing: str) -> None:
    fields = json.loads(manifest().to_json())
    del fields[missing]
    with pytest.raises(KnowledgeBaseError, match=f"manifest without {missing}"):
        Manifest.from_json(json.dumps(fields))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"format_version": 1}', "\x00" * 50])
def test_a_cut_off_manifest_is_refused(text: str) -> None:
    with pytest.raises(KnowledgeBaseError):
        Manifest.from_json(text)


def test_a_missing_manifest_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(KnowledgeBaseError, match="no knowledge base at"):
        Manifest.read(tmp_path / "nowhere")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(KnowledgeBaseError):
        Manifest.read(tmp_path)


def test_an_oversized_manifest_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "manifest.json", "wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(KnowledgeBaseError, match=f"at most {MAX_BYTES}"):
        Manifest.read(tmp_path)
    with pytest.raises(KnowledgeBaseError, match=f"at most {MAX_BYTES}"):
        manifest(identity={"long": "x" * MAX_BYTES}).write(tmp_path)


def test_nan_in_the_identity_is_refused() -> None:
    with pytest.raises(KnowledgeBaseError, match="finite JSON"):
        manifest(identity={"guidance": float("nan")})


def test_differences_print_both_sides_of_every_field() -> None:
    base = {"guidance": 7.5, "scheduler": {"class": "DDIMScheduler", "config": {"eta": 0}}, "lora": "a", "same": [1, 2]}
    mine = {"guidance": 5, "scheduler": {"class": "DDIMScheduler", "config": {"eta": False}}, "vae": 1, "same": (1, 2)}
    found = differences(base, mine)
    assert [each.field for each in found] == ["guidance", "lora", "scheduler.config.eta", "vae"]
    text = describe_differences(found)
    for line in ("knowledge base: 7.5", "pipeline:       5", 'knowledge base: "a"', "pipeline:       (not there)"):
        assert line in text


def test_equal_identities_do_not_differ() -> None:
    assert differences(manifest().identity, json.loads(manifest().to_json())["identity"]) == []


def test_a_long_value_is_shortened() -> None:
    text = describe_differences(differences({"timesteps": list(range(1000))}, {"timesteps": []}))
    assert "characters)" in text
    assert len(text) < 400
