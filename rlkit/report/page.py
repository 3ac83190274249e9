"""The page itself: what was found about a run, put as data into the assets."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import time
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from rlkit.recorder import blank_secrets, read_metrics
from rlkit.report.numbers import failures, ledger, read_curves, results, sections, timing
from rlkit.report.rollouts import read_rollouts

__all__ = ["write_report"]

SCRIPTS = ("dom.js", "charts.js", "evidence.js", "trie.js", "tree.js", "page.js")
"""Joined in this order into the page's one script."""


def write_report(run_dir: Path) -> Path:
    """Make `run_dir/report.html` from what the recorder left there; what is missing is said on the page."""
    notes: list[str] = []
    curves = read_curves(run_dir, notes)
    trees, reasons = read_rollouts(run_dir, notes)
    page = {
        "about": _about(run_dir, notes),
        "results": results(curves),
        "sections": sections(curves),
        "time": timing(curves),
        "ledger": ledger(curves["train"]),
        "failures": failures(curves, reasons),
        "rollouts": trees,
        "notes": notes,
    }
    path = run_dir / "report.html"
    path.write_text(_assemble(page), encoding="utf-8")
    return path


def _assemble(page: Mapping[str, Any]) -> str:
    assets = files("rlkit.report") / "assets"
    script = "\n".join((assets / name).read_text(encoding="utf-8") for name in SCRIPTS)
    data = json.dumps(_plain(page), separators=(",", ":"), allow_nan=False)
    parts = {
        "TITLE": "".join(char if char.isalnum() or char in " ._-" else " " for char in page["about"]["name"]),
        "STYLE": (assets / "style.css").read_text(encoding="utf-8"),
        "SCRIPT": script,
        "HASH": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        # No "<" in the data: nothing in it can end its element or begin another.
        "DATA": data.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"),
    }
    html = (assets / "page.html").read_text(encoding="utf-8")
    pieces = html.split("{{")  # one pass: a part that contains `{{` is never expanded again
    return pieces[0] + "".join(
        parts[piece[: piece.index("}}")]] + piece[piece.index("}}") + 2 :] for piece in pieces[1:]
    )


def _plain(value: Any) -> Any:
    """As JSON has it: six significant digits, null for what is not finite."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def _about(run_dir: Path, notes: list[str]) -> dict[str, Any]:
    about: dict[str, Any] = {}
    try:
        about = dict(json.loads((run_dir / "run.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        notes.append("run.json is missing or unreadable: seed, commit and machine are not known.")
    name = str(about.pop("name", "") or run_dir.resolve().name)
    started, resumed, commit = (
        about.pop("started", None),
        about.pop("resumed", []),
        str(about.pop("commit", "")),
    )
    facts = {"commit": commit[:10] + " with changes" * commit.endswith("+")} | about
    lines = read_metrics(run_dir)
    if started is not None:
        facts["started"] = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(started))
    if lines:
        facts["duration"] = _duration(lines[-1].time - (lines[0].time if started is None else started))
        facts["steps"] = f"{max(line.step for line in lines):,}"
    if resumed:
        facts["resumed"] = "once" if len(resumed) == 1 else f"{len(resumed)} times"
    recipe = run_dir / "recipe.yaml"
    return {
        "name": name,
        "facts": [(key, str(value)) for key, value in facts.items() if str(value)],
        "recipe": blank_secrets(recipe.read_text(encoding="utf-8", errors="replace")) if recipe.exists() else None,
    }


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
