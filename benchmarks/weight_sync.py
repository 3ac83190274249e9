"""A weight sync on one machine against one copy of the same bytes in memory.

    python -m benchmarks.weight_sync [--model smollm2-135m] [--repeats 5] > benchmarks/results/weight_sync.md

A learner and a rollout worker are two processes. A push through memory is: the learner's tensors into memory that both
share (a copy), which the worker's model then runs, and a fingerprint on both sides. Through the store it is a put into
Ray's object store, a copy from there into the model, and the fingerprints.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import ray
import torch
from safetensors.numpy import load_file

from benchmarks.machine import ROOT, machine
from rlkit.cluster import ray_workers
from rlkit.config import load
from rlkit.models.pretrained import resolve_model
from rlkit.sync.base import SyncReport
from rlkit.sync.fingerprint import fingerprint


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median; the first run warms up and does not count."""
    found = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return median(found[1:])


def pushed(way: str, folder: Path, repeats: int) -> tuple[float, SyncReport]:
    """Seconds of a push that way, and what it reported."""
    settings = [f"model.path={folder}", "cluster.kind=ray", "cluster.threads_per_worker=1", "train.steps=1"]
    recipe = load(ROOT / "recipes/tiny.yaml", [*settings, f"cluster.sync_over={way}"]).recipe
    with ray_workers(recipe, folder, folder, 1) as (rollouts, learner, sync):
        report = sync.push(learner)
        sync.push(learner)  # memory has its pages now, in both slots
        found = seconds(lambda: sync.push(learner), repeats), report
        rollouts.background.close()
    return found


def parts_of(folder: Path, repeats: int) -> dict[str, float]:
    """Seconds of a push's parts, in this process, on arrays of the model's sizes."""
    arrays = load_file(folder / "model.safetensors")
    targets = {name: np.ones_like(array) for name, array in arrays.items()}

    def copy() -> None:
        for name, array in arrays.items():
            np.copyto(targets[name], array)

    ray.init(address="local", num_cpus=1, include_dashboard=False)
    found = {
        "one copy in memory": seconds(copy, repeats),
        "a put into Ray's object store": seconds(lambda: ray.put(arrays), repeats),
        "a fingerprint": seconds(lambda: fingerprint(arrays), repeats),
    }
    ray.shutdown()
    return found


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    folder: Path = resolve_model(given.model)
    torch.set_num_threads(1)
    memory, report = pushed("memory", folder, given.repeats)
    store, _ = pushed("store", folder, given.repeats)
    parts = parts_of(folder, given.repeats)
    parts |= {"a whole push through memory, fingerprints compared": memory, "the same through the store": store}
    bound = parts["one copy in memory"]
    print("# A weight sync against a copy in memory\n")
    command = shlex.join(["python", "-m", "benchmarks.weight_sync", *sys.argv[1:]])
    print(f"```bash\n{command} > benchmarks/results/weight_sync.md\n```\n")
    size = report.num_bytes / 1e6
    print(f"{size:.0f} MB, one learner and one rollout worker of one thread; medians of {given.repeats}.\n")
    print("| what | s | GB/s | copies |\n| --- | ---: | ---: | ---: |")
    for title, found in parts.items():
        print(f"| {title} | {found:.3f} | {report.num_bytes / found / 1e9:.2f} | {found / bound:.1f} |")
    link = report.link_bytes_per_s / 1e9
    print(f"\nGoal: 1.2 copies. Measured by the run itself: {link:.2f} GB/s in the learner's memory.")
    print("\n" + ", ".join(f"{name} {value}" for name, value in machine(1).items()))


if __name__ == "__main__":
    main()
