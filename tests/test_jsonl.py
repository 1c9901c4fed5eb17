"""Files as people and programs write them: read, or refused in one sentence with the line."""

import gzip
import json
import random

import pytest

from pro_core.data.schema import DataError, load_examples, read_jsonl

ROWS = [
    {"objective": "helpful", "prompt": f"Name {i}.", "chosen": "a", "rejected": "b"}
    for i in range(3)
]
LINES = [json.dumps(row) for row in ROWS]


@pytest.mark.parametrize(
    "raw",
    [
        "\n".join(LINES).encode(),
        ("\r\n".join(LINES) + "\r\n").encode(),
        b"\xef\xbb\xbf" + "\n".join(LINES).encode(),
        b"\n".join(
            b"\xef\xbb\xbf" + line.encode() for line in LINES
        ),  # files with a mark, one after the other
        ("\n\n  \n" + "\n\n".join(LINES)).encode(),
        json.dumps(ROWS).encode(),
        b"\xef\xbb\xbf\n" + json.dumps(ROWS, indent=1).encode(),
    ],
    ids=["lines", "crlf", "bom", "bom on every line", "blank lines", "array", "indented array"],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json"])
@pytest.mark.parametrize("compressed", [False, True])
def test_every_form_of_a_file_gives_the_same_rows(tmp_path, raw, name, compressed):
    """By what is in it: a browser unpacks a .gz and keeps its name."""
    (tmp_path / name).write_bytes(gzip.compress(raw) if compressed else raw)
    assert read_jsonl(tmp_path / name) == ROWS


def test_a_line_ends_at_a_line_feed_only(tmp_path):
    row = {"text": "one\u2028two\u2029three\x85four"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_jsonl(tmp_path / "a.jsonl") == [row]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"PAR1\x15\x04\x15", "a file in Parquet, expected JSON Lines in UTF-8: `datasets.*from_parquet"),
        (b"ARROW1\0\0", "a file in Arrow"),
        (b"PK\x03\x04\x14\0", "a zip archive, .*unpack"),
        (b"BZh91AY", "bzip2, .*only gzip"),
        (b"\x28\xb5\x2f\xfd\x04", "zstandard"),
        (LINES[0].encode("utf-16"), "UTF-16, .*save it as UTF-8"),
        (LINES[0].encode("utf-16-le"), "UTF-16, .*save it as UTF-8"),
        (json.dumps(ROWS).encode("utf-16-le"), "UTF-16, .*save it as UTF-8"),
        (LINES[0].encode("utf-16-be"), "UTF-16, .*save it as UTF-8"),
        (f"{LINES[0]}\n".encode() + '{"prompt": "Où"}'.encode("latin-1"), "line 2: not UTF-8"),
        (f"{LINES[0]}\n".encode() + b"[" * 100_000, "line 2: nested too deeply"),
        (b"[" * 100_000, "line 1: nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "line 1: cannot be read .Exceeds the limit"),
        (json.dumps(ROWS[0], indent=1).encode(), "line 1: not JSON .an object over several lines; expected each"),
        (f'[{LINES[0]},\n{LINES[1]},\n{{"a": }}]'.encode(), "line 3: not JSON"),
        (b"[1, 2]", "record 1: got a int, expected an object"),
    ],
)  # fmt: skip
def test_other_kinds_of_file_are_named_with_what_to_do(tmp_path, raw, said):
    (tmp_path / "a.jsonl").write_bytes(raw)
    with pytest.raises(DataError, match=f"a.jsonl.*{said}") as caught:
        read_jsonl(tmp_path / "a.jsonl")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl.tsv", "A.CSV", "a.csv.gz"])
def test_a_table_and_a_folder_are_named_as_such(tmp_path, name):
    (tmp_path / name).write_text("prompt,chosen,rejected\nhi,a,b\n")
    with pytest.raises(DataError, match="a file in CSV, .*from_csv"):
        read_jsonl(tmp_path / name)
    with pytest.raises(DataError, match="a folder"):
        read_jsonl(tmp_path)


@pytest.mark.parametrize("name", ["export.csv.jsonl", "export.csv.jsonl.gz", "my.csv.rows"])
def test_only_the_last_part_of_a_name_says_what_a_file_is(tmp_path, name):
    (tmp_path / name).write_text(f"{LINES[0]}\n")
    assert read_jsonl(tmp_path / name) == ROWS[:1]


def test_any_damage_to_a_gzip_is_named_by_file_and_line(tmp_path):
    noise = random.Random(0)
    text = "".join(
        json.dumps({"prompt": f"{noise.random()}", "response": f"{noise.random()}"}) + "\n"
        for _ in range(1000)
    )
    whole = gzip.compress(text.encode())
    damaged = tmp_path / "a.jsonl.gz"
    for _ in range(100):
        content = bytearray(whole)
        at = noise.randrange(20, len(content) - 20)
        content[at : at + 8] = noise.randbytes(8)
        damaged.write_bytes(content)
        with pytest.raises(DataError, match=r"a.jsonl.gz, (after )?line \d+: "):
            read_jsonl(damaged)
    damaged.write_bytes(whole[:-500])
    with pytest.raises(DataError, match=r"after line \d+: damaged, cut off .*copy it again"):
        read_jsonl(damaged)


@pytest.mark.parametrize("label", ["NaN", "Infinity", "1e999", "1" + "0" * 400])
def test_an_integer_too_large_for_a_float_is_not_a_label(tmp_path, label):
    (tmp_path / "a.jsonl").write_text(
        f'{{"prompt": "a", "response": "b", "labels": {{"x": {label}}}}}'
    )
    with pytest.raises(DataError, match=r"record 1 .*got the label x: .*expected a finite number"):
        load_examples(tmp_path / "a.jsonl")
