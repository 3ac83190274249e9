"""One HTML page about a sweep: what was saved, curves, and every arm's difference to the best with its interval."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlkit.sweeps.racing import Interval, difference, over_seeds, pair_level
from rlkit.sweeps.record import Evaluation

__all__ = ["Standing", "standings", "write_sweep_report"]

STYLE = """:root{color-scheme:light dark;--ink:#1d2129;--soft:#6b7280;--line:#e3e6ea;--back:#fff}
@media(prefers-color-scheme:dark){:root{--ink:#e2e4e8;--soft:#949aa5;--line:#33373e;--back:#16181c}}
body{font:15px/1.55 system-ui,sans-serif;margin:2.5rem auto;max-width:68rem;padding:0 1.25rem;color:var(--ink);
background:var(--back)}
h1{font-size:1.5rem;margin:0 0 .25rem}h2{font-size:1rem;margin:2rem 0 .5rem}p{margin:.25rem 0}
.soft,th{color:var(--soft);font-weight:400}svg{display:block;width:100%;height:auto;fill:var(--ink)}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.4rem .5rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child,.gap{text-align:left}td:first-child{font-weight:500}
td.gap{width:9rem}.wide{overflow-x:auto}tr.best td{font-weight:650}tr.out{color:var(--soft)}
i{display:inline-block;width:.7rem;height:.7rem;border-radius:50%;margin-right:.5rem}.grid{stroke:var(--line)}.zero{stroke:var(--soft)}text{fill:var(--soft)}"""
COLOURS = ("#4269d0", "#e0a000", "#e8604c", "#3ca951", "#a463f2", "#3fb5a3", "#e377b4", "#9c6b4e")
REST = "#a9afb8"
"""Of arms beyond the last colour: a tenth hue could not be told apart."""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 300, 48, 14, 10, 38


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
    """Step at which it was beaten."""
    curve: tuple[tuple[int, float], ...]
    """(step, mean score)."""

    def note(self, steps: int) -> str:
        """What became of it in a sweep of so many steps."""
        if self.to_best is None:
            return "best"
        if self.step < steps:
            return f"stopped at step {self.step}" if self.dropped is not None else f"at step {self.step} of {steps}"
        return "beaten" if self.dropped is not None else ""


def standings(
    found: Sequence[Evaluation], dropped: Mapping[str, int], *, alpha: float = 0.05, arms: int | None = None
) -> list[Standing]:
    """Arms, the best first: those that went on before those that were stopped, then by steps and score.

    All intervals hold together with probability 1 - alpha, whichever of the `arms` (None: those found) is the best.
    """
    scores: dict[str, dict[int, list[Mapping[str, float]]]] = {}
    samples: dict[str, dict[int, int]] = {}
    for one in found:
        scores.setdefault(one.arm, {}).setdefault(one.step, []).append(one.scores)
        seeds = samples.setdefault(one.arm, {})
        seeds[one.seed] = max(seeds.get(one.seed, 0), one.samples)
    full = {arm: max(map(len, steps.values())) for arm, steps in scores.items()}
    means = {
        arm: {step: over_seeds(steps[step]) for step in sorted(steps) if len(steps[step]) == full[arm]}
        for arm, steps in scores.items()
    }
    curves = {arm: tuple((step, _mean(one)) for step, one in steps.items()) for arm, steps in means.items()}
    order = sorted(curves, key=lambda arm: (arm in dropped, -curves[arm][-1][0], -curves[arm][-1][1]))
    level = pair_level(alpha, arms or len(order))
    rows = []
    for arm in order:
        both = [step for step in means[arm] if step in means[order[0]]] if arm != order[0] else []
        step, score = curves[arm][-1]
        rows.append(
            Standing(
                arm=arm,
                step=step,
                score=score,
                samples=sum(samples[arm].values()),
                to_best=difference(means[arm][both[-1]], means[order[0]][both[-1]], level) if both else None,
                dropped=dropped.get(arm),
                curve=curves[arm],
            )
        )
    return rows


def write_sweep_report(
    folder: Path,
    rows: Sequence[Standing],
    *,
    title: str,
    steps: int,
    full_samples: int,
    alpha: float,
    prompts: int,
    seeds: int,
) -> Path:
    """Write `folder/sweep.html`; `full_samples` is what a grid without stopping would have trained on."""
    used = sum(row.samples for row in rows)
    ends = [end for row in rows if row.to_best for end in (row.to_best.low, row.to_best.high) if math.isfinite(end)]
    reach = max(map(abs, ends), default=1.0) or 1.0
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="soft">{len(rows)} arms · {seeds} seed{"s" * (seeds > 1)} each · {prompts} held-out prompts, '
        "the same for all</p>",
        f"<p><b>{_shown(rows[0].arm)}</b> leads with {rows[0].score:.3f}. The sweep trained on {used:,} "
        f"trajectories, {used / max(full_samples, 1):.0%} of the {full_samples:,} that every arm to its end takes.</p>",
        "<h2>Held-out score by training step</h2>",
        _curves(rows, steps),
        "<h2>Arms</h2>",
        "<div class=wide><table><tr><th>arm</th><th>step</th><th>score</th><th>minus the best</th>"
        f'<th class="gap">{_scale(reach)}</th><th>trajectories</th><th></th></tr>',
        *(_row(index, row, reach, steps) for index, row in enumerate(rows)),
        "</table></div>",
        f'<p class="soft">Differences to the best arm are taken prompt by prompt, averaged over seeds, at the latest '
        f"step that both have reached. Student intervals over prompts; with probability {1 - alpha:.3g} all of them "
        "hold together. They speak of the models as trained here, not of other seeds.</p>",
    ]
    head = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    )
    path = folder / "sweep.html"
    path.write_text(head + "\n".join(body) + "</html>\n", encoding="utf-8")
    return path


def _mean(scores: Mapping[str, float]) -> float:
    return math.fsum(scores.values()) / len(scores)


def _shown(arm: str) -> str:
    return html.escape(arm).replace(",", ", ")


def _colour(index: int) -> str:
    return COLOURS[index] if index < len(COLOURS) else REST


def _row(index: int, row: Standing, reach: float, steps: int) -> str:
    gap = f"{row.to_best.mean:+.3f}" if row.to_best else ""
    kind = "best" if index == 0 else "out" if row.dropped is not None else ""
    mark = f'<i style="background:{_colour(index)}"></i>{_shown(row.arm)}'
    numbers = (mark, row.step, f"{row.score:.3f}", gap)
    bar = _bar(row.to_best, reach, _colour(index)) if row.to_best else ""
    cells = "".join(f"<td>{cell}</td>" for cell in numbers) + f'<td class="gap">{bar}</td>'
    return f'<tr class="{kind}">{cells}<td>{row.samples:,}</td><td>{row.note(steps)}</td></tr>'


def _bar(found: Interval, reach: float, colour: str) -> str:
    """An interval on the scale of its column, whose middle is no difference; one without ends fills it."""

    def place(value: float) -> float:
        return 80 + 72 * max(min(value / reach, 1.0), -1.0)

    low, high, mean = place(found.low), place(found.high), place(found.mean)
    words = f"{found} on {found.n} prompts"
    return (
        f'<svg viewBox="0 0 160 16" role="img"><title>{words}</title>'
        '<line class="zero" x1="80" y1="0" x2="80" y2="16"/>'
        f'<line x1="{low:.1f}" y1="8" x2="{high:.1f}" y2="8" stroke="{colour}" stroke-width="2"/>'
        f'<circle cx="{mean:.1f}" cy="8" r="4" fill="{colour}"/></svg>'
    )


def _scale(reach: float) -> str:
    return (
        '<svg viewBox="0 0 160 16" font-size="11"><text x="8" y="12">'
        f'{-reach:.2g}</text><text x="80" y="12" text-anchor="middle">0</text>'
        f'<text x="152" y="12" text-anchor="end">+{reach:.2g}</text></svg>'
    )


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers inside [low, high]."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    each = next(size * power for size in (1, 2, 5, 10) if size * power >= rough)
    return [index * each for index in range(math.ceil(low / each - 1e-9), math.floor(high / each + 1e-9) + 1)]


def _curves(rows: Sequence[Standing], steps: int) -> str:
    """Curves of all arms over steps, the best on top."""
    scores = [score for row in rows for _, score in row.curve]
    low, high = min(scores), max(scores)
    if low == high:
        low, high = low - 0.5, high + 0.5
    low, high = low - 0.05 * (high - low), high + 0.05 * (high - low)

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / max(steps, 1)

    def y(score: float) -> float:
        return TOP + (HEIGHT - BOTTOM - TOP) * (1 - (score - low) / (high - low))

    parts = []
    for tick in _ticks(low, high):
        at = y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in (tick for tick in _ticks(0, max(steps, 1)) if tick == int(tick)):
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:.0f}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">training step</text>')
    for index, row in reversed(list(enumerate(rows))):
        where = [(x(step), y(score)) for step, score in row.curve]
        colour, wide = _colour(index), 3 if index == 0 else 1.6
        path = " ".join(f"{left:.1f},{top:.1f}" for left, top in where)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{wide}" stroke-linejoin="round"/>'
        )
        parts.append(f'<circle cx="{where[-1][0]:.1f}" cy="{where[-1][1]:.1f}" r="{wide + 1.5:g}" fill="{colour}"/>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" font-size="12" role="img">{"".join(parts)}</svg>'
