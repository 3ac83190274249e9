"""Runs a recipe again and again, killed at random moments, until one attempt gets to its end.

A program of its own: `python -m tests.killing RECIPE SEED NUM_KILLS key=value ...`. Everything heavy is imported once
and each attempt is a fork, so an attempt costs its run and not the imports.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import numpy as np


def attempt(arguments: list[str]) -> int:
    """Run the recipe in a forked child; its process id."""
    child = os.fork()
    if child == 0:
        from rlkit.launch.cli import main

        # The reward process of a killed run ends with the pipe to it; nothing else outlives the child.
        os._exit(main(["train", *arguments]))
    return child


def main() -> int:
    recipe, seed, num_kills, *overrides = sys.argv[1:]
    import rlkit.launch.run
    import rlkit.learner.build
    import rlkit.policy.hf
    import rlkit.report
    import rlkit.rollout.build
    import rlkit.train  # noqa: F401

    rng = np.random.default_rng(int(seed))
    arguments = [recipe, *overrides]
    start = time.perf_counter()
    out = next(o.partition("=")[2] for o in overrides if o.startswith("out="))
    # The uninterrupted run also tells how long a run takes, so that kills fall all over it.
    whole = [o if not o.startswith("out=") else f"out={out}_whole" for o in arguments]
    if os.waitpid(attempt(whole), 0)[1]:
        return 1
    length = time.perf_counter() - start
    kills = 0
    while kills < int(num_kills):
        child = attempt(arguments)
        deadline = time.perf_counter() + float(rng.uniform(0.1, 0.9)) * length
        while time.perf_counter() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                print(f"finished after {kills} kills")
                return status
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
    status = os.waitpid(attempt(arguments), 0)[1]
    print(f"finished after {kills} kills")
    return status


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
