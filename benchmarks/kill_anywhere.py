"""SIGKILL anywhere: every process of a run, at random moments, and the run ends as if nothing had happened.

    python -m benchmarks.kill_anywhere [--points 60] [--seed 0] > benchmarks/results/kill_anywhere.md

A point is one run of a tiny model from its start to its end in which one process is killed: as soon as the ledger has a
random number of lines, and a random part of a line's mean time later. A run that dies is started again with the same
command, as a job scheduler would, until it ends. Then it is compared with the undisturbed run of its mode:
weights to the bit, ledger event by event, steps logged once each.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.machine import ROOT, machine

__all__ = ["MODES", "Mode", "differences"]

STEPS = 6
MAX_STARTS = 5
"""Starts of one run before it counts as not survived."""


@dataclass(frozen=True, kw_only=True)
class Mode:
    """One way to run, and what is killed in it."""

    overrides: Sequence[str]
    victims: Sequence[str]


SYNC, ASYNC = "rollout.max_staleness=0", "rollout.max_staleness=2"
RAY = ("cluster.kind=ray", "cluster.rollout_workers=2", "cluster.threads_per_worker=1")
ON_RAY = ("driver", "rollout worker", "learner rank", "Ray node")
MODES: dict[str, Mode] = {
    "one process, by turns": Mode(overrides=(SYNC,), victims=("driver", "rewards")),
    "one process, asynchronous": Mode(overrides=(ASYNC,), victims=("driver", "rewards")),
    "Ray, by turns": Mode(overrides=(SYNC, *RAY), victims=ON_RAY),
    "Ray, asynchronous": Mode(overrides=(ASYNC, *RAY), victims=ON_RAY),
}
MARKS = {
    "rewards": "reward_process import serve",
    "rollout worker": "ray::RolloutWorker",
    "learner rank": "ray::LearnerRank",
    "Ray node": "/raylet ",
}
"""Victim -> what its command line holds; the driver is the run itself."""


@dataclass(kw_only=True)
class Tally:
    """Points of one victim in one mode."""

    points: int = 0
    equal: int = 0
    restarts: int = 0
    problems: list[str] = field(default_factory=list)


def start(arguments: Sequence[str], log: Path) -> int:
    """Run a recipe in a forked child of its own session; its process id."""
    child = os.fork()
    if child == 0:
        os.setsid()
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        try:
            from rlkit.launch.cli import main

            os._exit(main(["train", *arguments]))
        except BaseException:  # nothing of this program may go on in the child
            traceback.print_exc()
        finally:
            os._exit(1)
    return child


def lines(run: Path) -> int:
    """Lines of its ledger."""
    path = run / "ledger.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def ended(child: int) -> int | None:
    """Its status; None while it runs."""
    done, status = os.waitpid(child, os.WNOHANG)
    return status if done else None


def victim_of(child: int, victim: str, rng: np.random.Generator) -> int | None:
    """A process to kill; None if there is none now."""
    if victim == "driver":
        return child
    found = []
    for process in psutil.Process(child).children(recursive=True):
        try:
            if MARKS[victim] in " ".join([*process.cmdline(), ""]):
                found.append(process.pid)
        except psutil.Error:
            continue
    return int(rng.choice(found)) if found else None


def disturbed(
    arguments: Sequence[str], run: Path, victim: str, at: int, delay_s: float, rng: np.random.Generator
) -> int:
    """Run with one kill; how often it was started, 0 if the moment never came."""
    child, killed = start(arguments, run.with_suffix(".log")), False
    for starts in range(1, MAX_STARTS + 1):
        while (status := ended(child)) is None:
            if not killed and lines(run) >= at:
                time.sleep(delay_s)
                try:
                    if (target := victim_of(child, victim, rng)) is not None:
                        os.kill(target, signal.SIGKILL)
                        killed = True
                except (ProcessLookupError, psutil.Error):
                    pass  # it ended by itself meanwhile
            time.sleep(0.005)
        if status == 0:
            return starts if killed else 0
        child = start(arguments, run.with_suffix(".log"))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise RuntimeError(f"did not end within {MAX_STARTS} starts; see {run.with_suffix('.log')}")


def differences(run: Path, whole: Path) -> list[str]:
    """What tells a run from the undisturbed one; empty if nothing does."""
    from safetensors.torch import load_file

    from rlkit.sync.fingerprint import fingerprint

    found = []
    prints = [fingerprint(load_file(one / f"checkpoints/step_{STEPS:06d}/model.safetensors")) for one in (run, whole)]
    if prints[0] != prints[1]:
        found.append("other weights")
    books = [[json.loads(line) for line in (one / "ledger.jsonl").read_text().splitlines()] for one in (run, whole)]
    fates = Counter((event["draw"], event["event"]) for event in books[0] if "draw" in event)
    if any(count != 1 for count in fates.values()):
        found.append("an event happened twice")
    drawn = {event["draw"] for event in books[0] if event["event"] == "drawn"}
    if drawn != {event["draw"] for event in books[0] if event["event"] in ("trained", "dropped")}:
        found.append("a draw was lost")
    trained = [{e["draw"]: e.get("step") for e in book if e["event"] == "trained"} for book in books]
    if trained[0] != trained[1]:
        found.append("another ledger")
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = Counter(line["step"] for line in logged if line["phase"] == "train" and "loss" in line["metrics"])
    if steps != Counter(range(1, STEPS + 1)):
        found.append("a step was logged twice or lost")
    return found


def arguments_of(mode: Mode, model: Path, out: Path) -> list[str]:
    """Command line of a run."""
    return [
        str(ROOT / "recipes/tiny.yaml"),
        f"model.path={model}",
        f"out={out}",
        f"train.steps={STEPS}",
        "train.eval_every=0",
        "train.checkpoint_every=2",
        "log.tensorboard=false",
        "rewards=[{kind: benchmarks.even_bytes:even_bytes}]",
        *mode.overrides,
    ]


def schedule(points: int, modes: dict[str, Mode]) -> Iterator[tuple[str, str]]:
    """(mode, victim) of each point, spread evenly over victims."""
    pairs = [(name, victim) for name, mode in modes.items() for victim in mode.victims]
    for number in range(points):
        yield pairs[number % len(pairs)]


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    from rlkit.policy.invariance import VARIABLE, strict_mode

    os.environ.setdefault(VARIABLE, strict_mode())
    tallies: dict[tuple[str, str], Tally] = {}
    rng = np.random.default_rng(given.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = made(folder / "tiny")
        wholes: dict[str, tuple[int, float]] = {}
        for number, (title, victim) in enumerate(schedule(given.points, MODES)):
            mode, whole = MODES[title], folder / f"whole-{list(MODES).index(title)}"
            if title not in wholes:
                wholes[title] = undisturbed(arguments_of(mode, model, whole), whole)
            num_lines, seconds = wholes[title]
            tally = tallies.setdefault((title, victim), Tally())
            tally.points += 1
            starts = 0
            for attempt in range(10):  # the moment may pass while no victim runs: another one
                run = folder / f"run-{number}-{attempt}"
                at, delay = int(rng.integers(0, num_lines)), float(rng.uniform(0, seconds / num_lines))
                starts = disturbed(arguments_of(mode, model, run), run, victim, at, delay, rng)
                if starts:
                    break
            tally.restarts += starts - 1
            wrong = differences(run, whole) if starts else ["never killed"]
            tally.equal += not wrong
            tally.problems += wrong
            print(f"{number + 1}/{given.points} {title}, {victim}, line {at}: {wrong or 'equal'}", file=sys.stderr)
    print(page(given.points, tallies))


def made(folder: Path) -> Path:
    """The model, made by a child: this process only forks, so it starts no threads."""
    child = os.fork()
    if child == 0:
        from rlkit.policy.tiny import tiny_model

        tiny_model(folder)
        os._exit(0)
    os.waitpid(child, 0)
    import rlkit.launch.run
    import rlkit.learner.build
    import rlkit.policy.hf
    import rlkit.report
    import rlkit.rollout.build
    import rlkit.train  # noqa: F401  # imported once, so that a start costs its run and not its imports

    return folder


def undisturbed(arguments: Sequence[str], run: Path) -> tuple[int, float]:
    """Lines of the ledger of a run that nobody kills, and the seconds in which they were written."""
    child = start(arguments, run.with_suffix(".log"))
    begun = time.perf_counter()
    while (status := ended(child)) is None:
        if not lines(run):
            begun = time.perf_counter()
        time.sleep(0.005)
    if status:
        raise RuntimeError(run.with_suffix(".log").read_text()[-2000:])
    return lines(run), time.perf_counter() - begun


def page(points: int, tallies: dict[tuple[str, str], Tally]) -> str:
    """The result."""
    facts: dict[str, Any] = machine(1)
    equal = sum(tally.equal for tally in tallies.values())
    rows = [
        f"| {mode} | {victim} | {one.points} | {one.equal} | {one.restarts} | {'; '.join(one.problems) or '-'} |"
        for (mode, victim), one in sorted(tallies.items())
    ]
    head = ["| run | killed | points | equal | started again | problems |", "| --- | --- | ---: | ---: | ---: | --- |"]
    return "\n".join(
        [
            f"# SIGKILL at {points} random points: {equal} runs end equal to the undisturbed one",
            "",
            "```bash",
            f"python -m benchmarks.kill_anywhere --points {points} > benchmarks/results/kill_anywhere.md",
            "```",
            "",
            f"Tiny model, {STEPS} steps, a checkpoint every 2. Equal: weights to the bit, every draw trained once in",
            "the same step, no draw lost, every step logged once. What is not started again went on by itself.",
            "",
            *head,
            *rows,
            "",
            ", ".join(f"{name} {value}" for name, value in facts.items()),
        ]
    )


if __name__ == "__main__":
    main()
