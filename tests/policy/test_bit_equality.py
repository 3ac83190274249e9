"""A rollout is the same to the last bit of its log-probabilities, whatever happens around it.

Workers, slots, order of arrival, replay alone, a worker lost between turns, chunk size and threads change
nothing, for shapes that fill vectors and shapes that do not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlkit.errors import EngineError
from rlkit.models.pretrained import is_prepared, prepared_path
from rlkit.policy.drafts import whole_vectors
from rlkit.policy.invariance import VARIABLE, filled_up, is_invariant, strict_mode

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="MKL has the invariant mode")
ROOT = Path(__file__).parents[2]
SMALL = prepared_path("smollm2-135m")


def run(*shapes: str, mode: str | None) -> dict[str, dict[str, bool]]:
    """What `repeated_rollouts` reports for the shapes, with MKL in `mode`."""
    env = {name: value for name, value in os.environ.items() if name != VARIABLE}
    env |= {"OMP_NUM_THREADS": "1"} | ({VARIABLE: mode} if mode else {})
    program = [sys.executable, "-m", "tests.policy.repeated_rollouts", *shapes]
    done = subprocess.run(program, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_rollouts_are_bit_equal_in_every_circumstance() -> None:
    for shape, outcomes in run("smol", "odd", "gpt2", mode=None).items():  # the engine sets the mode itself
        assert len(outcomes) == 9
        assert [name for name, equal in outcomes.items() if not equal] == [], shape


@pytest.mark.slow
def test_the_portable_mode_is_invariant_too() -> None:
    assert all(run("odd", "gpt2", mode="AVX2,STRICT")["odd"].values())


@pytest.mark.slow
def test_the_comparison_sees_what_the_usual_mode_does() -> None:
    outcomes = run("usual", "odd", mode=None)["odd"]
    assert outcomes.pop("again")
    assert not outcomes["alone"] and not outcomes["2 workers"]


@pytest.mark.slow
@pytest.mark.skipif(not is_prepared(SMALL), reason="needs python -m rlkit.launch.model")
@pytest.mark.skipif("RLKIT_LONG" not in os.environ, reason="three minutes on an idle machine; set RLKIT_LONG=1")
def test_rollouts_of_a_real_model_are_bit_equal() -> None:
    outcomes = run(str(SMALL), mode=None)[str(SMALL)]
    assert [name for name, equal in outcomes.items() if not equal] == []


def test_a_process_that_is_too_late_is_told_how_to_start() -> None:
    program = """
import torch
torch.ones(40, 64) @ torch.ones(64, 64)  # from now on MKL stays as it is
from rlkit.policy.invariance import require_invariant_math
require_invariant_math(torch.device("cpu"), torch.float32)
"""
    env = {name: value for name, value in os.environ.items() if name != VARIABLE}
    done = subprocess.run([sys.executable, "-c", program], env=env, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        pytest.skip("on this processor MKL is invariant in its usual mode")
    assert f"start it with {VARIABLE}={strict_mode()}, or set deterministic: false" in done.stderr
    assert EngineError.__name__ in done.stderr


@pytest.mark.parametrize(
    ("rows", "filled"),
    [([], []), ([7], [7, 7, 7, 7]), ([1, 2, 3, 4], [1, 2, 3, 4]), ([1, 2, 3, 4, 9], [1, 2, 3, 4, *[9] * 4])],
)
def test_products_get_four_rows_or_a_multiple(rows: list[int], filled: list[int]) -> None:
    assert filled_up(rows) == filled


def test_products_in_double_precision_are_probed_too() -> None:
    assert isinstance(is_invariant(torch.device("cpu"), torch.float64), bool)


@pytest.mark.parametrize(
    ("num_tokens", "widths", "threads", "filled"),
    [
        (5, (576, 1536), 1, 8),  # multiples of 32: only whole rows, four by four
        (5, (77,), 1, 32),  # 77 is odd, so 32 tokens
        (5, (36, 90), 1, 16),  # 36 needs multiples of 8, 90 of 16
        (40, (1024,), 2, 40),  # 40,960 numbers, two threads with 20,480 each
        (70, (1024,), 3, 72),  # three threads: 71,680 = 3 · 23,893.3 but 73,728 = 3 · 24,576
    ],
)
def test_rows_are_filled_up_to_whole_vectors_per_thread(num_tokens, widths, threads, filled) -> None:
    assert whole_vectors(num_tokens, widths, threads) == filled


def test_grown_trees_are_bit_equal_in_any_company() -> None:
    env = {name: value for name, value in os.environ.items() if name != VARIABLE} | {"OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "tests.policy.grown_trees"]
    done = subprocess.run(program, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for decoder, outcomes in json.loads(done.stdout.splitlines()[-1]).items():
        assert [name for name, equal in outcomes.items() if not equal] == [], decoder
