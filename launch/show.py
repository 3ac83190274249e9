"""`rlkit show`: the resolved recipe as YAML that runs again, with the origin of every value as a comment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from rlkit.config import Resolved
from rlkit.settings import join

__all__ = ["annotated"]

COLUMN = 56
"""Where comments start; a longer line pushes its own comment to the right."""


def annotated(resolved: Resolved) -> str:
    """`optim:` then `  lr: 1.0e-05    # command line`, and so on."""
    rows = _rows(resolved.values, "", "")
    return "\n".join(_commented(line, resolved.origins.get(path, "")) for line, path in rows)


def _rows(value: dict[str, Any], path: str, indent: str) -> Iterator[tuple[str, str]]:
    """(line of YAML, path of its value); the path is empty where the line only opens a section."""
    for key, item in value.items():
        here = join(path, key)
        if isinstance(item, dict) and item:
            yield f"{indent}{key}:", ""
            yield from _rows(item, here, indent + "  ")
        elif isinstance(item, list) and item and all(isinstance(entry, dict) for entry in item):
            yield f"{indent}{key}:", ""
            for index, entry in enumerate(item):
                rows = _rows(entry, join(here, index), indent + "    ")
                first, first_path = next(rows)
                yield f"{indent}  - {first.strip()}", first_path
                yield from rows
        else:
            # a list of plain values stays on its line, and its first entry tells the origin of all
            yield (
                f"{indent}{key}: {_inline(item)}",
                join(here, 0) if isinstance(item, list) and item else here,
            )


def _inline(value: Any) -> str:
    """One line of YAML, however long."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _commented(line: str, origin: str) -> str:
    return f"{line:<{COLUMN}}  # {origin}" if origin else line
