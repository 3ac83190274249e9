"""A weight sync through Ray's object store against one copy of the same bytes in memory.

    python -m benchmarks.weight_sync [--model smollm2-135m] [--repeats 5] > benchmarks/results/weight_sync.md

A learner and a rollout worker are two processes of one machine. A push is: the learner's tensors into shared memory (a
copy), read there by the worker without a copy, into its model (a copy), and a fingerprint on both sides.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import ray
import torch

from benchmarks.machine import ROOT, machine
from rlkit.cluster import ray_workers
from rlkit.config import load
from rlkit.models.pretrained import resolve_model
from rlkit.sync.fingerprint import fingerprint


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median; the first run warms up and does not count."""
    found = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return median(found[1:])


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    folder: Path = resolve_model(given.model)
    settings = [f"model.path={folder}", "cluster.kind=ray", "cluster.threads_per_worker=1", "train.steps=1"]
    recipe = load(ROOT / "recipes/tiny.yaml", settings).recipe
    torch.set_num_threads(1)
    with ray_workers(recipe, folder, folder, 1) as (rollouts, learner, sync):
        report = sync.push(learner)
        whole = seconds(lambda: sync.push(learner), given.repeats)
        # the parts, in this process, on arrays of the same sizes
        parcel, leaving = learner.send(1 << 40, changes=False, whole=True)
        arrays = {name: np.array(array) for name, array in ray.get(parcel.buckets[0]).items()}
        ray.get(leaving)
        targets = {name: np.empty_like(array) for name, array in arrays.items()}

        def copy() -> None:
            for name, array in arrays.items():
                np.copyto(targets[name], array)

        parts = {
            "one copy in memory": seconds(copy, given.repeats),
            "into shared memory": seconds(lambda: ray.put(arrays), given.repeats),
            "a fingerprint": seconds(lambda: fingerprint(arrays), given.repeats),
        }
        rollouts.background.close()
    bound = parts["one copy in memory"]
    print("# A weight sync against a copy in memory\n")
    print("```bash\npython -m benchmarks.weight_sync > benchmarks/results/weight_sync.md\n```\n")
    size = report.num_bytes / 1e6
    print(f"{size:.0f} MB, one learner and one rollout worker of one thread; medians of {given.repeats}.\n")
    print("| what | s | GB/s | copies |\n| --- | ---: | ---: | ---: |")
    for title, found in [*parts.items(), ("a whole push, fingerprints compared", whole)]:
        print(f"| {title} | {found:.3f} | {report.num_bytes / found / 1e9:.2f} | {found / bound:.1f} |")
    print(f"\nGoal: 1.2 copies. Measured by the run itself: {report.link_bytes_per_s / 1e9:.2f} GB/s to the worker.")
    print("\n" + ", ".join(f"{name} {value}" for name, value in machine(1).items()))


if __name__ == "__main__":
    main()
