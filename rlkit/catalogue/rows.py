"""Gzipped lines of JSON, one object each; whatever is wrong with a file is a `DataError` with its place."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkit.errors import DataError, nearest

__all__ = ["read_rows", "write_rows"]


def read_rows(file: Path, required: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The objects of a file; each holds the keys of `required`. Raises `DataError` naming file and line."""
    if not file.is_file():
        beside = [str(found) for found in file.parent.glob("*.jsonl.gz")]
        missing = f"no file {file}" if file.parent.is_dir() else f"no folder {file.parent}"
        raise DataError(f"{missing}{nearest(str(file), beside)}")
    line = 0
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for line, text in enumerate(lines, start=1):
                row = json.loads(text)
                if lacking := [key for key in required if key not in row]:
                    raise DataError(f"{file}:{line}: {', '.join(lacking)} missing")
                yield row
    except (OSError, EOFError, zlib.error, ValueError, TypeError) as error:
        raise DataError(f"{file}:{max(line, 1)}: cannot be read: {error}") from error


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write objects, equal bytes for equal rows."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))
