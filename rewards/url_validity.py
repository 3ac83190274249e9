"""Reward for URLs that exist: those of the evidence, and approved ones that answer (adqa, algorithm 1).

    U        different URLs of the answer           U_D   those of the evidence
    U_evi  = U ∩ U_D                                valid without being fetched, even if dead
    U_http = {u ∈ U \\ U_D : approved prefix and status 200, 301 or 302}
    R_h    = Reward(U_evi + U_http) - Penalty(the rest)

The paper names Reward and Penalty and defines neither; `mode` chooses: `ratio` pays shares of U, `count` numbers up to
3, `indicator` whether there is any. The value is (R_h + 1) / 2, so an answer without a URL has 0.5; a blank answer
has 0. Statuses come from a table, from the network where the recipe allows the host, or from nobody (the default): then
only the evidence makes a URL valid. The URLs of the reference answer count for nothing, as in the paper; those that are
invalid although the reference cites them are logged, because they say that the evidence is incomplete.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from rlkit.errors import RewardError
from rlkit.evidence.passages import evidence_of
from rlkit.evidence.urls import extract_urls, leaks, under_prefix
from rlkit.records import Task, Trajectory
from rlkit.reward import Score, contract
from rlkit.rewards.http_status import HttpStatus
from rlkit.text import without_thoughts

__all__ = ["Mode", "StatusOf", "UrlReport", "classify_urls", "url_reward", "url_validity"]

Mode = Literal["ratio", "count", "indicator"]
StatusOf = Callable[[str], int | None]
"""URL -> HTTP status, None where there was no answer."""
ALIVE = frozenset({200, 301, 302})
CAP = 3
"""URLs that `count` pays for on either side; without it pasting links pays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlReport:
    """The URLs of one answer by verdict; together they are U, apart they share nothing."""

    evidence: tuple[str, ...] = ()
    """In the evidence."""
    approved_live: tuple[str, ...] = ()
    """Not there, but under an approved prefix and alive."""
    invalid: tuple[str, ...] = ()
    """Neither: invented, unapproved or dead."""

    @property
    def num_urls(self) -> int:
        """|U|."""
        return len(self.evidence) + len(self.approved_live) + len(self.invalid)


def _nobody_knows(url: str) -> int | None:
    return None


def classify_urls(
    answer: str, evidence: str, pool: Sequence[str] = (), http_status: StatusOf = _nobody_knows
) -> UrlReport:
    """Steps 1 to 5 of algorithm 1. Only URLs under an approved prefix of `pool` are ever asked about."""
    in_evidence = set(extract_urls(evidence))
    verdicts: dict[str, list[str]] = {"evidence": [], "approved_live": [], "invalid": []}
    for url in extract_urls(answer):
        if url in in_evidence:
            verdict = "evidence"
        else:
            verdict = "approved_live" if under_prefix(url, pool) and http_status(url) in ALIVE else "invalid"
        verdicts[verdict].append(url)
    return UrlReport(**{verdict: tuple(urls) for verdict, urls in verdicts.items()})


def url_reward(report: UrlReport, mode: Mode = "ratio", penalty: float = 1.0) -> float:
    """R_h before rescaling, in [-1, 1]; 0 without a URL. `penalty` is the weight w of invalid URLs."""
    valid, invalid = len(report.evidence) + len(report.approved_live), len(report.invalid)
    if not valid + invalid:
        return 0.0
    match mode:
        case "ratio":
            raw = (valid - penalty * invalid) / (valid + invalid)
        case "count":
            raw = (min(valid, CAP) - penalty * min(invalid, CAP)) / CAP
        case "indicator":
            raw = float(valid > 0) - penalty * float(invalid > 0)
    return max(raw, -1.0)


def _bounds(*, keep_raw: bool = False, **settings: object) -> tuple[float, float]:
    return (-1.0, 1.0) if keep_raw else (0.0, 1.0)


@contract(bounds=_bounds)
def url_validity(
    task: Task,
    trajectory: Trajectory,
    *,
    pool: list[str] = [],  # noqa: B006  # copied by rlkit.plugins
    mode: Mode = "ratio",
    penalty: float = 1.0,
    keep_raw: bool = False,
    check: Literal["off", "table", "http"] = "off",
    table: str | None = None,
    hosts: list[str] = [],  # noqa: B006
    timeout_s: float = 3.0,
    cache_file: str | None = None,
    evidence_tag: str = "information",
) -> Score:
    """The value of the answer's URLs, and what is worth logging about them.

    `pool`: approved prefixes. `mode`, `penalty`, `keep_raw` (no rescaling to [0, 1]): see the module. `check`: who
    knows statuses; `table` is a JSON file of URL -> status, `hosts` the hosts that may be contacted, `cache_file` keeps
    their statuses for the whole run (null: for this process). Raises `RewardError` for settings that cannot work.
    """
    answer = without_thoughts(trajectory.answer or "")
    status = _source(check, table, tuple(hosts), timeout_s, cache_file)
    evidence = evidence_of(trajectory, evidence_tag)
    report = classify_urls(answer, evidence, pool, status)
    raw = url_reward(report, mode, penalty)
    value = raw if keep_raw else (raw + 1) / 2
    cited = {url for gold in task.answers for url in extract_urls(gold)}
    measured = {
        "num_urls": float(report.num_urls),
        "any_invalid": float(bool(report.invalid)),
        "num_invalid": float(len(report.invalid)),
        "without_url": float(report.num_urls == 0),
        "num_leaks": float(len(leaks(answer))),
        "reference_only": float(len(cited.intersection(report.invalid))),
    }
    return Score(value=value if answer.strip() else 0.0, measured=measured)


@cache  # one table and one cache of statuses per process and setting
def _source(
    check: str, table: str | None, hosts: tuple[str, ...], timeout_s: float, cache_file: str | None
) -> StatusOf:
    if check == "table":
        return _table(table)
    if check == "http":
        if not hosts:
            raise RewardError("url_validity.hosts: is empty; name the hosts that check=http may contact")
        return HttpStatus(hosts, timeout_s=timeout_s, cache_file=Path(cache_file) if cache_file else None)
    return _nobody_knows


def _table(path: str | None) -> StatusOf:
    if path is None:
        raise RewardError("url_validity.table: missing; check=table reads a JSON file of URL -> status")
    try:
        entries = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        known = {extract_urls(url)[0]: None if code is None else int(code) for url, code in entries.items()}
    except (OSError, ValueError, AttributeError, TypeError, IndexError) as error:
        raise RewardError(f"url_validity.table: {path} is no JSON file of URL -> status ({error})") from error
    return known.get
