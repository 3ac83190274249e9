"""What an answer cites and where its evidence came from: the verdict of each URL, the walk over the graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rlkit.evidence.passages import evidence_of
from rlkit.evidence.urls import canonical, extract_urls, spans, under_prefix
from rlkit.records import Trajectory

__all__ = ["Evidence", "answer_parts", "read_evidence", "walk_of"]

ALIVE = (200, 301, 302)
MAX_SHOWN = 12
"""Passages of one walk that are drawn."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a run left behind about URLs and retrieval."""

    pool: tuple[str, ...] = ()
    """Approved prefixes of the reward `url_validity`."""
    statuses: Mapping[str, int | None] = field(default_factory=dict)
    """Of URLs that were checked."""
    tag: str = "information"
    """What evidence stands in."""
    walks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Question -> the newest line of the retrieval log."""


def read_evidence(run_dir: Path, notes: list[str]) -> Evidence:
    """From the run's recipe, its table or cache of statuses, and its retrieval log; nothing of it has to be there."""
    reward = _reward(run_dir)
    statuses: dict[str, int | None] = {}
    try:
        if reward.get("table"):
            statuses |= json.loads(Path(reward["table"]).expanduser().read_text(encoding="utf-8"))
        if reward.get("cache_file") and Path(reward["cache_file"]).is_file():
            statuses |= dict(map(json.loads, Path(reward["cache_file"]).read_text(encoding="utf-8").splitlines()))
    except (OSError, ValueError, TypeError) as error:
        notes.append(f"Statuses of URLs are unreadable: {error}.")
    walks: dict[str, Mapping[str, Any]] = {}
    log = run_dir / "retrieval.jsonl"
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            notes.append("retrieval.jsonl has a line that cannot be read.")
            break
        if isinstance(entry, dict) and "query" in entry:
            walks[str(entry["query"])] = entry
    return Evidence(
        pool=tuple(map(str, reward.get("pool") or ())),
        statuses={canonical(str(url)): status for url, status in statuses.items()},
        tag=str(reward.get("evidence_tag") or "information"),
        walks=walks,
    )


def _reward(run_dir: Path) -> Mapping[str, Any]:
    """The settings of the reward `url_validity`; empty if the run has none."""
    try:
        recipe = yaml.safe_load((run_dir / "recipe.yaml").read_text(encoding="utf-8"))
        found = [reward for reward in recipe["rewards"] if reward["kind"] == "url_validity"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return {}
    return found[0] if found else {}


def answer_parts(trajectory: Trajectory, about: Evidence) -> list[tuple[str, str]] | None:
    """The answer in pieces (text, verdict): `evidence`, `alive`, `unchecked`, `invented`, or empty between URLs.

    `unchecked` lies under an approved prefix and nobody knows its status. None if the answer cites nothing.
    """
    answer = trajectory.answer or ""
    shown = set(extract_urls(evidence_of(trajectory, about.tag)))
    pieces: list[tuple[str, str]] = []
    last = 0
    for start, end, url in spans(answer):
        if url in shown:
            verdict = "evidence"
        elif not under_prefix(url, about.pool):
            verdict = "invented"
        elif url not in about.statuses:
            verdict = "unchecked"
        else:
            verdict = "alive" if about.statuses[url] in ALIVE else "invented"
        pieces += [(answer[last:start], ""), (answer[start:end], verdict)]
        last = end
    return [*pieces, (answer[last:], "")] if pieces else None


def walk_of(question: str, about: Evidence) -> dict[str, Any] | None:
    """The walk for a task's question as columns: entities by distance, then passages; None if none was logged."""
    entry = about.walks.get(question)
    walk = entry.get("walk") if entry else None
    if entry is None or not isinstance(walk, Mapping):
        return None
    try:
        used = [str(passage) for passage in entry["passages"]]
        reached = {str(passage): str(entity) for passage, entity in walk["reached"]}
        chosen = sorted(reached, key=lambda passage: passage not in used)[:MAX_SHOWN]
        before = {str(b): (str(a), str(relation)) for a, relation, b in walk["edges"]}
        linked = [str(name) for name in walk["linked"]]
    except (KeyError, TypeError, ValueError):
        return None
    edges: dict[tuple[str, str, str], None] = {}
    depth = dict.fromkeys(linked, 0)
    for passage in chosen:
        route = [reached[passage]]
        while route[-1] not in depth and route[-1] in before and len(route) < len(before) + 2:
            source, relation = before[route[-1]]
            edges[source, relation, route[-1]] = None
            route.append(source)
        start = depth.get(route[-1], 0)
        for step, name in enumerate(reversed(route)):
            depth.setdefault(name, start + step)
    return {
        "entities": [[name, level] for name, level in depth.items()],
        "edges": list(edges),
        "passages": [[passage, reached[passage], passage in used] for passage in chosen],
        "version": entry.get("version", ""),
    }
