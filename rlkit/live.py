"""What a run looks like while it runs: a live table in a terminal, one plain line per step anywhere else.

A log of a CI job or of `ray job logs` must stay readable and greppable, so nothing is redrawn there.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from rich.console import Console, Group
from rich.live import Live as RichLive
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

__all__ = ["LiveView", "Phase", "sparkline"]

Phase = Literal["train", "eval"]

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 32
_TIMINGS = ("rollout", "reward", "learn", "sync", "eval")
_CURVES = {
    "reward/mean": "reward",
    "groups/effective": "effective groups",
    "rollout/completion_tokens": "completion tokens",
    "kl/behavior": "KL to sampler",
    "entropy": "entropy",
    "grad_norm": "gradient norm",
}


def sparkline(values: Iterable[float], width: int = _WIDTH) -> str:
    """The last `width` values as bars between minimum and maximum; one that is not finite is a gap."""
    recent = list(values)[-width:]
    finite = [value for value in recent if math.isfinite(value)]
    if not finite:
        return " " * len(recent)
    low, spread = min(finite), max(finite) - min(finite)
    heights = [(value - low) / spread if spread else 0.5 for value in finite]
    bars = iter(_BARS[min(int(height * len(_BARS)), len(_BARS) - 1)] for height in heights)
    return "".join(next(bars) if math.isfinite(value) else " " for value in recent)


def _number(value: float) -> str:
    """Three significant digits, thousands as k and M: 0.0412, 12.3, 10.2k."""
    size = abs(value)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
    return f"{value:.0f}" if size >= 100 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02}m" if hours else f"{minutes}m {rest:02}s" if minutes else f"{rest}s"


class LiveView:
    """Shows every logged step; a sink like the recorder's others."""

    def __init__(
        self,
        *,
        name: str = "",
        num_steps: int | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._num_steps = num_steps
        self._console = console or Console()
        self._clock = clock
        self._started = self._last = clock()
        self._step: int | None = None
        self._step_seconds: deque[float] = deque(maxlen=20)
        self._history: dict[str, deque[float]] = {}
        self._latest: dict[Phase, dict[str, float]] = {"train": {}, "eval": {}}
        self._screen: RichLive | None = None

    def log(self, step: int, phase: Phase, metrics: Mapping[str, float]) -> None:
        """Show the numbers of one step."""
        now = self._clock()
        if phase == "train" and step != self._step:
            if self._step is not None:
                self._step_seconds.append((now - self._last) / max(step - self._step, 1))
            self._step, self._last = step, now
        self._latest[phase].update(metrics)
        for name, value in metrics.items():
            self._history.setdefault(f"{phase}:{name}", deque(maxlen=_WIDTH)).append(value)
        if self._console.is_terminal:
            self._redraw()
        elif not all(name.startswith("timing/") for name in metrics):  # seconds alone are not worth a line
            self._console.print(self._line(step, phase, metrics), markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the last table on the screen."""
        if self._screen is not None:
            self._screen.stop()
            self._screen = None

    @property
    def eta_s(self) -> float | None:
        """Seconds to the last step at the median pace of recent ones; None before the second step."""
        if self._num_steps is None or self._step is None or not self._step_seconds:
            return None
        return statistics.median(self._step_seconds) * max(self._num_steps - self._step, 0)

    def _line(self, step: int, phase: Phase, metrics: Mapping[str, float]) -> str:
        of = "" if self._num_steps is None else f"/{self._num_steps}"
        parts = [f"step {step}{of}" if phase == "train" else f"eval {step}{of}"]
        if phase == "eval":
            parts += [f"{label} {value}" for label, value in self._held_out(metrics)]
        else:
            short = {"reward/mean": "reward", "rollout/completion_tokens": "tokens"}
            parts += [f"{short[name]} {_number(metrics[name])}" for name in short if name in metrics]
        parts += [text for text in (self._tokens(metrics), self._seconds(metrics)) if text]
        if phase == "train" and (eta := self.eta_s) is not None:
            parts.append(f"eta {_duration(eta)}")
        return "  ".join(parts)

    def _redraw(self) -> None:
        if self._screen is None:
            self._screen = RichLive(console=self._console, refresh_per_second=4)
            self._screen.start()
        self._screen.update(self.render())

    def render(self) -> Group:
        """The table of the current state."""
        train = self._latest["train"]
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
        table.add_column(style="dim")
        table.add_column(justify="right", style="bold")
        table.add_column()
        for name, label in _CURVES.items():
            if name in train:
                table.add_row(label, _number(train[name]), sparkline(self._history[f"train:{name}"]))
        for label, value in self._held_out(self._latest["eval"]):
            name = "reward/mean" if label == "reward" else f"reward/{label}/mean"
            table.add_row(f"eval {label}", value, sparkline(self._history[f"eval:{name}"]))
        for label, text in (("tokens", self._tokens(train)), ("seconds", self._seconds(train))):
            if text:
                table.add_row(label, "", Text(text))
        return Group(self._title(), table)

    def _title(self) -> Table:
        title = Table.grid(padding=(0, 2, 0, 0))
        of = "" if self._num_steps is None else f" of {self._num_steps}"
        cells: list[Text | ProgressBar] = [
            Text(self._name, style="bold"),
            Text(f"step {self._step or 0}{of}"),
        ]
        if self._num_steps:
            cells.append(ProgressBar(total=self._num_steps, completed=self._step or 0, width=24))
        left = "" if self.eta_s is None else f", {_duration(self.eta_s)} left"
        cells.append(Text(f"{_duration(self._clock() - self._started)} so far{left}", style="dim"))
        title.add_row(*cells)
        return title

    @staticmethod
    def _held_out(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
        rows = []
        for name, value in metrics.items():
            if name.startswith("reward/") and name.endswith("/mean") and name != "reward/mean":
                stem = name.removesuffix("/mean")
                ends = [metrics.get(f"{stem}/{end}") for end in ("low", "high")]
                band = "" if None in ends else f" [{_number(ends[0])}, {_number(ends[1])}]"  # type: ignore[arg-type]
                rows.append((stem.removeprefix("reward/"), _number(value) + band))
        if not rows and "reward/mean" in metrics:
            rows.append(("reward", _number(metrics["reward/mean"])))
        return rows

    @staticmethod
    def _tokens(metrics: Mapping[str, float]) -> str:
        unique, flat = metrics.get("tokens/unique"), metrics.get("tokens/flat")
        if not unique or flat is None:
            return ""
        return f"{_number(unique)} unique for {_number(flat)} flat ({flat / unique:.1f}x)"

    @staticmethod
    def _seconds(metrics: Mapping[str, float]) -> str:
        known = {name: metrics[f"timing/{name}_s"] for name in _TIMINGS if f"timing/{name}_s" in metrics}
        return " ".join(f"{name} {value:.1f}s" for name, value in known.items())
