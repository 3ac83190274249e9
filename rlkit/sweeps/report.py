"""One HTML page about a sweep: arms in order, differences to the best with intervals, curves, and what was saved."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlkit.sweeps.racing import Interval, difference
from rlkit.sweeps.record import Evaluation

__all__ = ["Standing", "standings", "write_sweep_report"]

STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:62rem;padding:0 1rem;
color:#222;background:#fff}
table{border-collapse:collapse;width:100%}th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid #ddd}
th:first-child,td:first-child{text-align:left;font-family:ui-monospace,monospace}tr.best{font-weight:600}
.out{color:#888}svg{width:100%;height:auto}@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}
th,td{border-color:#444}}"""
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0")
WIDTH, HEIGHT, LEFT, BOTTOM = 760, 280, 46, 26


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One arm at its latest step that all its seeds have reached."""

    arm: str
    step: int
    score: float
    """Mean over prompts and seeds at `step`."""
    samples: int
    """Trajectories that all its seeds trained on, to wherever they came."""
    to_best: Interval | None
    """Difference to the best arm at the latest step both have; None for the best arm itself."""
    dropped: int | None
    """Step at which it was stopped."""
    curve: tuple[tuple[int, float], ...]
    """(step, mean score)."""


def standings(found: Sequence[Evaluation], dropped: Mapping[str, int], alpha: float = 0.05) -> list[Standing]:
    """Arms, the best first: those that went furthest before those that were stopped, then by score."""
    scores: dict[str, dict[int, dict[str, float]]] = {}
    samples: dict[str, dict[int, int]] = {}
    for one in found:
        scores.setdefault(one.arm, {}).setdefault(one.step, {}).update(
            {f"{one.seed}:{prompt}": score for prompt, score in one.scores.items()}
        )
        seeds = samples.setdefault(one.arm, {})
        seeds[one.seed] = max(seeds.get(one.seed, 0), one.samples)
    full = {arm: max(map(len, steps.values())) for arm, steps in scores.items()}
    curves = {
        arm: [(step, _mean(steps[step])) for step in sorted(steps) if len(steps[step]) == full[arm]]
        for arm, steps in scores.items()
    }
    order = sorted(curves, key=lambda arm: (arm in dropped, -curves[arm][-1][0], -curves[arm][-1][1]))
    rows = []
    for arm in order:
        to_best = None
        if arm != order[0]:
            both = [step for step, _ in curves[arm] if step in scores[order[0]]]
            if both:
                to_best = difference(scores[arm][both[-1]], scores[order[0]][both[-1]], alpha)
        step, score = curves[arm][-1]
        rows.append(
            Standing(
                arm=arm,
                step=step,
                score=score,
                samples=sum(samples[arm].values()),
                to_best=to_best,
                dropped=dropped.get(arm),
                curve=tuple(curves[arm]),
            )
        )
    return rows


def write_sweep_report(
    folder: Path,
    found: Sequence[Evaluation],
    dropped: Mapping[str, int],
    *,
    title: str,
    full_samples: int,
    alpha: float,
) -> Path:
    """Write `folder/sweep.html`; `full_samples` is what a grid without stopping would have trained on."""
    rows = standings(found, dropped, alpha)
    used = sum(row.samples for row in rows)
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{len(rows)} arms, {used:,} trajectories of the {full_samples:,} that every arm to its end would take "
        f"({used / max(full_samples, 1):.0%}). Scores are means over the shared evaluation prompts and all seeds; "
        f"differences are per prompt, with {1 - alpha:.0%} Student intervals over prompts.</p>",
        _svg(rows),
        "<table><tr><th>arm</th><th>step</th><th>score</th><th>to the best</th><th>trajectories</th><th></th></tr>",
        *(_row(index, row) for index, row in enumerate(rows)),
        "</table>",
    ]
    head = f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    path = folder / "sweep.html"
    path.write_text(head + "\n".join(body) + "\n", encoding="utf-8")
    return path


def _mean(scores: Mapping[str, float]) -> float:
    return math.fsum(scores.values()) / len(scores)


def _row(index: int, row: Standing) -> str:
    gap = ""
    if row.to_best is not None:
        ends = f" [{row.to_best.low:+.3f}, {row.to_best.high:+.3f}]" if math.isfinite(row.to_best.low) else ""
        gap = f"{row.to_best.mean:+.3f}{ends}"
    note = "best" if index == 0 else f"stopped at step {row.dropped}" if row.dropped is not None else ""
    kind = "best" if index == 0 else "out" if row.dropped is not None else ""
    mark = f'<span style="color:{COLOURS[index % len(COLOURS)]}">&#9632;</span> '
    cells = (mark + html.escape(row.arm), row.step, f"{row.score:.3f}", gap, f"{row.samples:,}", note)
    return f'<tr class="{kind}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _svg(rows: Sequence[Standing]) -> str:
    """Curves of all arms over steps."""
    points = [point for row in rows for point in row.curve]
    if not points:
        return ""
    last = max(step for step, _ in points) or 1
    low, high = min(score for _, score in points), max(score for _, score in points)
    high = high if high > low else low + 1

    def place(step: int, score: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - 8) * step / last
        return x, 8 + (HEIGHT - BOTTOM - 8) * (1 - (score - low) / (high - low))

    lines = []
    for index, row in reversed(list(enumerate(rows))):
        where = [place(*point) for point in row.curve]
        colour, wide = COLOURS[index % len(COLOURS)], 2.5 if index == 0 else 1.2
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in where)
        x, y = where[-1]
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{wide}"/>')
        lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
    marks = [(0, low), (0, high), (last, low)]
    texts = [f'<text x="{LEFT - 6}" y="{place(*m)[1] + 4:.0f}" text-anchor="end">{m[1]:.3g}</text>' for m in marks[:2]]
    texts.append(f'<text x="{WIDTH - 8}" y="{HEIGHT - 6}" text-anchor="end">step {last}</text>')
    inside = "".join(lines + texts)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" font-size="12" fill="currentColor" role="img">{inside}</svg>'
