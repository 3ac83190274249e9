"""Arms of a recommendation experiment compared: seeds averaged for every user first, intervals over users.

    python -m benchmarks.recommend_arms office.npz --differences ved_sib-beam_grpo no_value-ved_sib

Reads what `python -m benchmarks.recommend --per-user` kept. A system named ARM_SEED, `ved_sib_0`, is a seed of an arm;
any other is an arm of its own. Prints Markdown: a row per arm, its mean, the 95 % bootstrap interval over users and,
for HR@10 and NDCG@10, the spread of its seeds (standard deviation, n - 1); then paired differences, for which the same
users are drawn for both arms. An interval over users says nothing about seeds that were not run.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlkit.metrics import bootstrap_mean

__all__ = ["arms_of", "difference", "main", "table"]

Floats = NDArray[np.float64]
Arms = dict[str, dict[str, Floats]]
"""Arm -> measure -> [seeds, users]; NaN where a measure does not apply to a user."""
SPREAD = ("HR@10", "NDCG@10")
RESAMPLES = 500


def arms_of(kept: Mapping[str, Floats]) -> Arms:
    """`SYSTEM/measure` -> [users], grouped by arm; seeds in the order of their numbers."""
    seeds: dict[str, dict[str, dict[int, Floats]]] = {}
    for key, values in kept.items():
        system, _, measure = key.partition("/")
        found = re.fullmatch(r"(.+?)(?:_| \(seed )(\d+)\)?", system)
        arm, seed = (found[1], int(found[2])) if found else (system, 0)
        seeds.setdefault(arm, {}).setdefault(measure, {})[seed] = np.asarray(values, np.float64)
    return {
        arm: {measure: np.stack([by[seed] for seed in sorted(by)]) for measure, by in measures.items()}
        for arm, measures in seeds.items()
    }


def _users(values: Floats) -> Floats:
    """[seeds, users] -> the users' means over seeds, of those to whom the measure applies."""
    means = values.mean(0)
    return means[~np.isnan(means)]


def difference(arms: Arms, first: str, second: str, measure: str) -> tuple[float, float, float]:
    """Mean of first - second over users, and its 95 % interval; both arms on the same users."""
    apart = arms[first][measure].mean(0) - arms[second][measure].mean(0)
    apart = apart[~np.isnan(apart)]
    low, high = bootstrap_mean(apart.tolist(), num_resamples=RESAMPLES)
    return float(apart.mean()), low, high


def table(arms: Arms, differences: Sequence[tuple[str, str]]) -> str:
    """The page's two tables."""
    measures = list(next(iter(arms.values())))
    lines = [f"| arm | seeds | {' | '.join(measures)} |", "| --- | ---: |" + " --- |" * len(measures)]
    for arm, found in arms.items():
        cells = []
        for measure in measures:
            users = _users(found[measure])
            low, high = bootstrap_mean(users.tolist(), num_resamples=RESAMPLES)
            cell = f"{users.mean():.4f} [{low:.4f}, {high:.4f}]" if measure in SPREAD else f"{users.mean():.4f}"
            if measure in SPREAD and len(found[measure]) > 1:
                cell += f" ± {np.nanmean(found[measure], 1).std(ddof=1):.4f}"
            cells.append(cell)
        lines.append(f"| {arm} | {len(found[measures[0]])} | {' | '.join(cells)} |")
    if differences:
        lines += ["", f"| difference | {' | '.join(SPREAD)} |", "| --- |" + " --- |" * len(SPREAD)]
    for first, second in differences:
        found_cells = (difference(arms, first, second, measure) for measure in SPREAD)
        shown = " | ".join(f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]" for mean, low, high in found_cells)
        lines.append(f"| {first} - {second} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recommend_arms", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "files", nargs="+", type=Path, help=".npz of benchmarks.recommend --per-user, same users in all"
    )
    parser.add_argument("--differences", nargs="*", default=[], metavar="A-B", help="paired: A minus B")
    given = parser.parse_args()
    kept: dict[str, Floats] = {}
    for file in given.files:
        kept |= np.load(file)
    arms = arms_of(kept)
    pairs = [(first, second) for first, _, second in (pair.partition("-") for pair in given.differences)]
    if unknown := sorted({arm for pair in pairs for arm in pair} - arms.keys()):
        raise SystemExit(f"error: --differences: no arm {', '.join(unknown)}; there are {', '.join(arms)}")
    print(table(arms, pairs))


if __name__ == "__main__":
    main()
