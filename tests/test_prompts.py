"""Claims about reading prompts from files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from redi.building.prompts import read_prompts
from redi.errors import InputError

Write = Callable[[str, str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


def captions(*pairs: tuple[object, object]) -> str:
    return json.dumps({"images": [], "annotations": [{"image_id": image, "caption": text} for image, text in pairs]})


def test_txt_holds_one_prompt_a_line_and_blank_lines_are_skipped(write: Write) -> None:
    assert read_prompts(write("p.txt", "a cat\n\n  a dog, asleep \r\n\t\na café\na cat")) == [
        "a cat",
        "a dog, asleep",
        "a café",
        "a cat",
    ]


def test_a_byte_order_mark_is_no_part_of_a_prompt(write: Write) -> None:
    assert read_prompts(write("p.txt", b"\xef\xbb\xbfa cat\n")) == ["a cat"]


def test_the_suffix_may_be_in_capitals_and_the_path_a_string(write: Write) -> None:
    assert read_prompts(str(write("P.TXT", "a cat"))) == ["a cat"]


def test_jsonl_holds_strings_and_objects(write: Write) -> None:
    lines = ['"a cat"', '{"id": 1, "prompt": "a dog"}', "", '{"caption": "a hen"}', '{"text": "a\\u2028pig"}']
    assert read_prompts(write("p.jsonl", "\n".join(lines))) == ["a cat", "a dog", "a hen", "a\u2028pig"]


def test_prompt_wins_over_caption_and_caption_over_text(write: Write) -> None:
    assert read_prompts(write("p.jsonl", '{"text": "a", "caption": "b", "prompt": "c"}')) == ["c"]
    assert read_prompts(write("p.csv", "text,caption\na,b\n")) == ["b"]


def test_csv_reads_its_column_with_quotes_and_line_breaks(write: Write) -> None:
    content = 'id,Prompt \n1,"a cat, asleep"\n\n2,"a ""big""\ndog"\n3,\n'
    assert read_prompts(write("p.csv", content)) == ["a cat, asleep", 'a "big"\ndog']


def test_csv_and_parquet_take_their_only_column_whatever_its_name(write: Write, tmp_path: Path) -> None:
    assert read_prompts(write("p.csv", "beschreibung\na cat\n")) == ["a cat"]
    pq.write_table(pa.table({"beschreibung": ["a cat"]}), tmp_path / "p.parquet")
    assert read_prompts(tmp_path / "p.parquet") == ["a cat"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_reads_its_column_over_row_groups(tmp_path: Path, kind: pa.DataType) -> None:
    words = [f"prompt {number}" for number in range(7)]
    pq.write_table(
        pa.table({"id": range(7), "caption": pa.array(words, kind)}), tmp_path / "p.parquet", row_group_size=2
    )
    assert read_prompts(tmp_path / "p.parquet") == words


def test_coco_gives_the_first_caption_of_each_image_in_order_of_appearance(write: Write) -> None:
    content = captions((9, "a cat"), (2, " "), (4, "a dog "), (9, "one cat"), (2, "a hen"), (4, "one dog"))
    assert read_prompts(write("captions.json", content)) == ["a cat", "a dog", "a hen"]


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.csv", "p.json"])
@pytest.mark.parametrize("content", ["", " \n\n"])
def test_an_empty_file_is_refused(write: Write, name: str, content: str) -> None:
    with pytest.raises(InputError, match="is empty"):
        read_prompts(write(name, content))


def test_files_with_a_frame_but_no_prompts_are_refused(write: Write, tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "p.parquet")
    for path in (tmp_path / "p.parquet", write("p.csv", "id,prompt\n"), write("p.json", captions())):
        with pytest.raises(InputError, match="is empty"):
            read_prompts(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_prompts(tmp_path / "none.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        read_prompts(tmp_path / "folder.txt")


@pytest.mark.parametrize("name", ["p.yaml", "p", "p.txt.gz"])
def test_an_unknown_suffix_is_refused_with_the_known_ones(write: Write, name: str) -> None:
    with pytest.raises(InputError, match=r"\.txt, \.jsonl, \.csv, \.parquet, \.json"):
        read_prompts(write(name, "a cat"))


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.csv", "p.json"])
def test_another_encoding_is_refused_with_its_line(write: Write, name: str) -> None:
    with pytest.raises(InputError, match=r"line 2 .* not UTF-8 \(byte 0xe9\)"):
        read_prompts(write(name, "a cat\na café\n".encode("latin1")))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "a dog"', r"line 3 .* is not JSON"),
        ("a dog", r"line 3 .* is not JSON"),
        ("[1]", r"line 3 .* is a list"),
        ('{"title": "a dog"}', r"line 3 .* names title\n.*prompt, caption, text"),
        ('{"prompt": null}', r"field 'prompt' in line 3 .* holds nothing"),
        ('{"prompt": 3}', r"field 'prompt' in line 3 .* holds a value of type int"),
    ],
)
def test_a_bad_jsonl_line_is_refused_with_its_number(write: Write, line: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_prompts(write("p.jsonl", f'"a cat"\n\n{line}\n'))


def test_csv_and_parquet_without_a_known_column_are_refused(write: Write, tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "title": ["a"]}), tmp_path / "p.parquet")
    for path in (write("p.csv", "id,title\n1,a\n"), tmp_path / "p.parquet"):
        with pytest.raises(InputError, match=r"names id, title\n.*prompt, caption, text"):
            read_prompts(path)


def test_a_csv_prompt_with_bare_commas_is_refused_and_not_cut(write: Write) -> None:
    with pytest.raises(InputError, match=r"line 3 .* has 2 fields, the header 1"):
        read_prompts(write("p.csv", "prompt\na dog\na cat, asleep\n"))


def test_a_csv_quote_that_never_ends_is_refused(write: Write) -> None:
    with pytest.raises(InputError, match="is not CSV"):
        read_prompts(write("p.csv", 'prompt\n"a dog\na cat\n'))


def test_parquet_that_is_none_or_holds_no_text_is_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a parquet file"):
        read_prompts(write("p.parquet", "a cat"))
    for values, says in (([1, 2], "row 1 .* holds a value of type int"), (["a", None], "row 2 .* holds nothing")):
        pq.write_table(pa.table({"prompt": values}), tmp_path / "p.parquet")
        with pytest.raises(InputError, match=says):
            read_prompts(tmp_path / "p.parquet")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('["a cat"]', "no list of annotations"),
        ('{"images": []}', "no list of annotations"),
        ('{"annotations": "a cat"}', "no list of annotations"),
        ('{"annotations": [', "is not JSON"),
        ('{"annotations": [{"caption": "a cat"}]}', "annotation 1 .* has no image_id"),
        ('{"annotations": [{"image_id": 1}]}', "'caption' in annotation 1 .* holds nothing"),
    ],
)
def test_json_that_is_not_cocos_captions_is_refused(write: Write, content: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_prompts(write("p.json", content))
