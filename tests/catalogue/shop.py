"""A shop of six items on five semantic IDs of three levels, and its data set on disk."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SIDS = {
    10: ("<a_1>", "<b_1>", "<c_1>"),
    11: ("<a_1>", "<b_1>", "<c_2>"),
    12: ("<a_1>", "<b_2>", "<c_3>"),
    13: ("<a_2>", "<b_3>", "<c_4>"),
    14: ("<a_2>", "<b_3>", "<c_5>"),
    15: ("<a_2>", "<b_3>", "<c_5>"),  # shares with 14
}
ITEMS = [{"item_id": item, "sid": sid, "title": f"thing {item}"} for item, sid in SIDS.items()]
USERS = [
    {"user_id": 1, "items": [10, 11, 12, 13, 14]},
    {"user_id": 2, "items": [13, 12, 11]},
    {"user_id": 3, "items": [10, 15]},  # too short for a test and a validation target
]


def text(*items: int) -> str:
    return "".join("".join(SIDS[item]) for item in items)


def write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def write_shop(root: Path, **files: Sequence[Mapping[str, Any]]) -> Path:
    """`root/shop` with items and sequences, or those given; further files by name."""
    for name, rows in {"items": ITEMS, "sequences": USERS, **files}.items():
        write(root / "shop" / f"{name}.jsonl.gz", rows)
    return root
