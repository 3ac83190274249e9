"""What a run leaves behind, in plain files, and optionally in TensorBoard and Weights & Biases.

    run_dir/run.json                         name, seed, commit, machine, when it started and was resumed
    run_dir/recipe.yaml                      the resolved recipe
    run_dir/metrics.jsonl                    {"step", "phase", "time", "metrics"}, one line per call of `log`
    run_dir/rollouts/step_000012.jsonl.gz    some of its trees (rlkit/store.py); eval_000012: of evaluations
    run_dir/report.html                      made of the above by rlkit/report.py

No environment variable is ever recorded, and values of settings that look like secrets are blanked.
"""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import re
import subprocess
import time
import uuid
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np

from rlkit.errors import RecipeError, RlkitError
from rlkit.live import LiveView, Phase
from rlkit.metrics import UndocumentedMetric, metric
from rlkit.records import CreditedTree, ScoredTree
from rlkit.store import Decoder, write_trees

__all__ = ["LoggedStep", "Recorder", "Sink", "blank_secrets", "read_metrics", "rollout_files"]

WandbMode = Literal["off", "offline", "online"]

_SECRET = re.compile(
    r"""(?i)(["']?\b(?:\w*(?:api_?key|passw(?:or)?d|secret|credentials?)|(?:\w*_)?(?:auth|access|hf|api|bearer)_token|token)["']?
        \s*[:=]\s*)("(?:[^"\\]|\\.)*"|'[^']*'|[^\s,}\]][^,}\]\n]*)""",
    re.VERBOSE,
)
_URL_LOGIN = re.compile(r"(://)[^/\s@]+@")
_ROLLOUTS = {"train": "step", "eval": "eval"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedStep:
    """One line of `metrics.jsonl`."""

    step: int
    """Optimizer steps done when it was measured."""
    phase: Phase
    time: float
    """Seconds since the epoch."""
    metrics: Mapping[str, float]
    """NaN where the number was not finite."""


class Sink(Protocol):
    """Another place that wants the numbers."""

    def log(self, step: int, phase: Phase, metrics: Mapping[str, float]) -> None:
        """Take the numbers of one step."""
        ...

    def close(self) -> None:
        """Finish."""
        ...


def blank_secrets(text: str) -> str:
    """Settings named like a key, password, secret or token, and logins in addresses, become `***`."""
    return _URL_LOGIN.sub(r"\1***@", _SECRET.sub(r'\1"***"', text))


def read_metrics(run_dir: Path) -> list[LoggedStep]:
    """All lines in the order written; a line torn by a crash is left out, a missing file is no lines."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [step for step in map(_parse, lines) if step is not None]


def _parse(line: bytes) -> LoggedStep | None:
    try:
        row = json.loads(line)
        metrics = {str(name): math.nan if v is None else float(v) for name, v in row["metrics"].items()}
        return LoggedStep(step=int(row["step"]), phase=row["phase"], time=float(row["time"]), metrics=metrics)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def rollout_files(run_dir: Path, phase: Phase = "train") -> dict[int, Path]:
    """Step -> file of stored trees, in order of steps."""
    found = sorted((run_dir / "rollouts").glob(f"{_ROLLOUTS[phase]}_*.jsonl.gz"))
    return {int(path.name.split(".")[0].rpartition("_")[2]): path for path in found}


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _commit() -> str:
    """Commit of the checkout that this file belongs to, with `+` if changed since; empty without git."""

    def git(*args: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # not a copy inside someone else's repository
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


class Recorder:
    """Writes a run's numbers and rollouts. One per run, in the driver process."""

    def __init__(
        self,
        run_dir: Path | str,
        *,
        tensorboard: bool = False,
        wandb: WandbMode = "off",
        project: str | None = None,
        live: bool = True,
        num_steps: int | None = None,
        trees_per_step: int | None = 4,
        decode: Decoder | None = None,
    ) -> None:
        """`num_steps` gives the live view an end; `decode` lets the report show tokens as text."""
        self.run_dir = Path(run_dir)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._trees_per_step = trees_per_step
        self._decode = decode
        self._file = os.open(self.run_dir / "metrics.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._warned: set[str] = set()
        self._sinks: list[Sink] = []
        if live:
            self._sinks.append(LiveView(name=self.run_dir.name, num_steps=num_steps))
        if tensorboard:
            self._sinks.append(_TensorBoard(self.run_dir / "tensorboard"))
        if wandb != "off":
            self._sinks.append(_Wandb(self.run_dir, project, wandb))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def header(self, *, name: str, seed: int, recipe: str = "", **facts: str | float | int) -> None:
        """Write `run.json` and, if given, the resolved recipe (YAML); a resumed run keeps its first start."""
        path = self.run_dir / "run.json"
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
        machine = f"{system}, Python {platform.python_version()}"
        about = {"name": name, "seed": seed, "commit": _commit(), "machine": machine} | facts
        safe = {key: blank_secrets(value) if isinstance(value, str) else value for key, value in about.items()}
        times = {"started": known.get("started", time.time()), "resumed": known.get("resumed", [])}
        if known:
            times["resumed"] = [*times["resumed"], time.time()]
        _replace(path, json.dumps(safe | times, indent=1) + "\n")
        if recipe:
            _replace(self.run_dir / "recipe.yaml", blank_secrets(recipe))

    def resume(self, step: int) -> None:
        """Forget everything after `step`, the step of the checkpoint that the run goes on from."""
        lines = (self.run_dir / "metrics.jsonl").read_bytes().splitlines()
        kept = [line.decode() for line in lines if (row := _parse(line)) is not None and row.step <= step]
        _replace(self.run_dir / "metrics.jsonl", "".join(line + "\n" for line in kept))
        replaced, self._file = self._file, os.open(self.run_dir / "metrics.jsonl", os.O_WRONLY | os.O_APPEND)
        os.close(replaced)
        for phase in ("train", "eval"):
            for stored, path in rollout_files(self.run_dir, phase).items():
                if stored > step:
                    path.unlink()
        for sink in self._sinks:
            if isinstance(sink, _TensorBoard):
                sink.purge_step = step + 1

    def log(self, step: int, metrics: Mapping[str, float], phase: Phase = "train") -> None:
        """Record numbers of one step; durable when it returns. May be called several times for a step."""
        numbers = {name: float(value) for name, value in metrics.items()}
        self._check(numbers)
        # JSON has no NaN: null keeps the line readable to every tool.
        safe = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        row = {"step": step, "phase": phase, "time": round(time.time(), 3), "metrics": safe}
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        if os.write(self._file, line) < len(line):  # one write: a line is never mixed, and short only on a full disk
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.run_dir / "metrics.jsonl"))
        os.fsync(self._file)
        for sink in self._sinks:
            sink.log(step, phase, numbers)

    def trees(self, step: int, trees: Sequence[ScoredTree | CreditedTree], phase: Phase = "train") -> None:
        """Store `trees_per_step` of the step's trees (None: all), evenly spaced, to be read and rescored."""
        if not trees or self._trees_per_step == 0:
            return
        count = len(trees) if self._trees_per_step is None else min(self._trees_per_step, len(trees))
        spaced = np.linspace(0, len(trees) - 1, num=count).round().astype(int)
        path = self.run_dir / "rollouts" / f"{_ROLLOUTS[phase]}_{step:06}.jsonl.gz"
        write_trees(path, [trees[index] for index in spaced], self._decode)

    def close(self) -> None:
        """Close every file and sink; a second call does nothing."""
        for sink in self._sinks:
            sink.close()
        self._sinks = []
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _check(self, names: Iterable[str]) -> None:
        for name in set(names) - self._warned:
            try:
                metric(name)
            except RlkitError as error:
                self._warned.add(name)
                warnings.warn(str(error), UndocumentedMetric, stacklevel=3)


class _TensorBoard:
    """Event files; opened at the first number, when it is known where a resumed run goes on."""

    def __init__(self, log_dir: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # optional, and it brings torch along
        except ImportError as error:
            raise RecipeError(
                "log.tensorboard", f"true, but {error}; install tensorboard or set it to false"
            ) from error
        self.purge_step: int | None = None
        self._open: Any = lambda: SummaryWriter(str(log_dir), purge_step=self.purge_step)
        self._writer: Any = None

    def log(self, step: int, phase: Phase, metrics: Mapping[str, float]) -> None:
        self._writer = self._writer or self._open()
        for name, value in metrics.items():
            self._writer.add_scalar(f"{phase}/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _Wandb:
    """One wandb run per run directory, also after a resume."""

    def __init__(self, run_dir: Path, project: str | None, mode: WandbMode) -> None:
        try:
            import wandb  # optional
        except ImportError as error:
            raise RecipeError("log.wandb", f"{mode}, but {error}; install wandb or set it to off") from error
        id_file = run_dir / "wandb_id"
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex[:12])
        self._run = wandb.init(
            project=project or "rlkit",
            name=run_dir.name,
            dir=str(run_dir),
            id=id_file.read_text().strip(),
            mode=mode,
            resume="allow" if mode == "online" else None,
            # What wandb gathers by itself includes the command line, where a secret may stand.
            settings={"x_disable_meta": True, "disable_git": True, "disable_code": True, "console": "off"},
        )
        # wandb refuses steps that go back, as they do after a resume; its own step axis may.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, phase: Phase, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step} | {f"{phase}/{name}": value for name, value in metrics.items()})

    def close(self) -> None:
        self._run.finish()
