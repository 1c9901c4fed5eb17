"""JSON Lines files, as people and programs write them: plain or gzipped, with or without a byte order mark."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pro_core.data.formats import Row
from pro_core.system.storage import first_line


class DataError(ValueError):
    """A file or row that cannot be read. The message says where, what it got and what it expected."""


def read_jsonl(path: str | Path) -> list[Row]:
    """The records of a JSON Lines file, or of a file with one JSON array; gzipped or not, whatever its name.

    Lines end only at a line feed. A byte order mark and carriage returns, as Windows writes them, are ignored.

    Raises:
        DataError: no such file, another kind of file, a damaged gzip, or a broken line (with file and line number).
    """
    path = Path(path)
    if not path.is_file():
        reason = "a folder" if path.is_dir() else "no such file"
        raise DataError(f"{path}: {reason}; PRO_DATA_DIR names the folder of the data files")
    rows: list[Row] = []
    number = 0
    try:
        _check_kind(path)
        with _opener(path)(path, "rb") as file:
            for number, line in enumerate(file, 1):
                line = line.removeprefix(b"\xef\xbb\xbf")
                if not line.strip():
                    continue
                if not rows and line.lstrip().startswith(b"["):
                    array = _parse_json(path, number, line + file.read())
                    return [_record(path, f"record {i}", row) for i, row in enumerate(array, 1)]
                rows.append(_record(path, f"line {number}", _parse_json(path, number, line)))
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(
            f"{path}, after line {number}: damaged, cut off or not readable ({error}); copy it again"
        ) from None
    return rows


_OTHER_FILES = {
    b"PAR1": ("Parquet", "`datasets.Dataset.from_parquet(path).to_json(new_path)` writes one"),
    b"ARROW1": ("Arrow", "`datasets.Dataset.from_file(path).to_json(new_path)` writes one"),
    b"PK\x03\x04": ("a zip archive", "unpack it first"),
    b"BZh": ("bzip2", "unpack it first, only gzip is read"),
    b"\xfd7zXZ": ("xz", "unpack it first, only gzip is read"),
    b"\x28\xb5\x2f\xfd": ("zstandard", "unpack it first, only gzip is read"),
    b"\xff\xfe": ("UTF-16", "save it as UTF-8"),
    b"\xfe\xff": ("UTF-16", "save it as UTF-8"),
    b"{\0": ("UTF-16", "save it as UTF-8"),
    b"\0{": ("UTF-16", "save it as UTF-8"),
    b"[\0": ("UTF-16", "save it as UTF-8"),
    b"\0[": ("UTF-16", "save it as UTF-8"),
}
"""First bytes of files that are not JSON Lines -> what they are, and what to do."""

_CSV = ("CSV", "`datasets.Dataset.from_csv(path).to_json(new_path)` writes one")


def _opener(path: Path) -> Callable[..., Any]:
    """``gzip.open`` for a gzipped file, by its first bytes: browsers and tools unpack files but keep their names."""
    with path.open("rb") as file:
        return gzip.open if file.read(2) == b"\x1f\x8b" else open


def _check_kind(path: Path) -> None:
    with _opener(path)(path, "rb") as file:
        head = file.read(8)
    known = [named for mark, named in _OTHER_FILES.items() if head.startswith(mark)]
    unpacked = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    if unpacked.suffix.lower() in (".csv", ".tsv"):
        known.append(_CSV)
    if known:
        kind, remedy = known[0]
        raise DataError(f"{path}: got a file in {kind}, expected JSON Lines in UTF-8: {remedy}")


def _parse_json(path: Path, number: int, raw: bytes) -> Any:
    """The JSON value that begins on line ``number`` of a file."""
    try:
        return json.loads(raw.decode("utf-8").rstrip())
    except UnicodeDecodeError as error:
        line = number + raw.count(b"\n", 0, error.start)
        raise DataError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from None
    except RecursionError:
        raise DataError(f"{path}, line {number}: nested too deeply to be read") from None
    except json.JSONDecodeError as error:
        line = number + error.lineno - 1
        reason = error.msg
        if raw.strip() == b"{":
            reason = "an object over several lines; expected each object on one line, or all in one array"
        raise DataError(f"{path}, line {line}: not JSON ({reason})") from None
    except ValueError as error:  # an integer of thousands of digits
        raise DataError(f"{path}, line {number}: cannot be read ({first_line(error)})") from None


def _record(path: Path, where: str, row: Any) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"{path}, {where}: got a {type(row).__name__}, expected an object")
    return row
