"""The same asynchronous run again and again, every answer at another time: are the weights the same to the bit?

    python -m benchmarks.delays [--runs 20] > benchmarks/results/delays.md

Trains a tiny model with stale rollouts. Every completion and every reward is held back by a random time of up to 40
ms, drawn anew in each run, so that arrival orders differ; the page says how many did.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from benchmarks.machine import machine
from rlkit.config import load
from rlkit.launch.run import run_parts
from rlkit.policy.base import Completion, SampleRequest
from rlkit.policy.tiny import tiny_model
from rlkit.records import ScoredTree, Tree
from rlkit.sync.fingerprint import fingerprint
from rlkit.train import train

__all__ = ["Delayed", "delayed_run"]

RECIPE = Path(__file__).parents[1] / "recipes" / "tiny.yaml"
STEPS = 6
LONGEST_S = 0.04


@dataclass(frozen=True, kw_only=True)
class Delayed:
    """One run."""

    weights: str
    """Fingerprint of the last checkpoint."""
    ledger: str
    """Digest of what was trained in which step."""
    arrivals: str
    """Digest of the order in which completions came back."""
    seconds: float


def delayed_run(model: Path, out: Path, *overrides: str, longest_s: float = LONGEST_S) -> Delayed:
    """Train once, with delays of up to `longest_s`."""
    chance, arrivals = random.Random(), hashlib.blake2b(digest_size=8)
    settings = [
        f"model.path={model}",
        f"out={out}",
        f"train.steps={STEPS}",
        "train.eval_every=0",
        "train.checkpoint_every=0",
        "log.tensorboard=false",
        "rollout.max_staleness=2",
        "rewards=[{kind: benchmarks.even_bytes:even_bytes}]",
        *overrides,
    ]
    start = time.perf_counter()
    with run_parts(load(RECIPE, settings)) as parts:
        rollouts: Any = parts.rollouts
        sample, score = rollouts.engine.sample, rollouts.scorer.score

        async def sampled(request: SampleRequest) -> Completion:
            done: Completion = await sample(request)
            await asyncio.sleep(longest_s * chance.random())
            arrivals.update(f"{request.task_id}/{request.sample_index}/{request.turn};".encode())
            return done

        async def scored(tree: Tree) -> ScoredTree:
            await asyncio.sleep(longest_s * chance.random())
            found: ScoredTree = await score(tree)
            return found

        rollouts.engine.sample, rollouts.scorer.score = sampled, scored
        train(parts)
    lines = (out / "ledger.jsonl").read_bytes()
    return Delayed(
        weights=fingerprint(load_file(out / "checkpoints" / f"step_{STEPS:06d}" / "model.safetensors")),
        ledger=hashlib.blake2b(lines, digest_size=8).hexdigest(),
        arrivals=arrivals.hexdigest(),
        seconds=time.perf_counter() - start,
    )


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as name:
        model = tiny_model(Path(name) / "tiny")
        found = [delayed_run(model, Path(name) / str(number)) for number in range(runs)]
        still = delayed_run(model, Path(name) / "still", longest_s=0.0)
        other = delayed_run(model, Path(name) / "other", "seed=1")
    print(f"# {runs} asynchronous runs with other delays: {len({one.weights for one in found})} set of weights\n")
    print(f"```bash\npython -m benchmarks.delays --runs {runs} > benchmarks/results/delays.md\n```\n")
    print(
        "| runs | delays up to | orders of arrival | sets of weights | ledgers |\n| ---: | ---: | ---: | ---: | ---: |"
    )
    everything = [*found, still]
    for title, group in ((f"{LONGEST_S * 1000:.0f} ms", found), ("none", [still]), ("both", everything)):
        counts = [len({getattr(one, name) for one in group}) for name in ("arrivals", "weights", "ledger")]
        print(f"| {len(group)} | {title} | {counts[0]} | {counts[1]} | {counts[2]} |")
    print(f"\nWith another seed the weights are {'others' if other.weights != still.weights else 'THE SAME'}.")
    print("\n" + ", ".join(f"{key} {value}" for key, value in machine(1).items()))


if __name__ == "__main__":
    main()
