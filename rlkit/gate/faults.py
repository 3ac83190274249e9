"""A world in which every service times out: what does a reward say when its judge, retriever or solver is silent?

`leaf_under_faults` and `group_under_faults` are rewards themselves: they call another reward while every standard way
to wait for something with a deadline ends in that deadline at once. What they measure is how often that happened.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import multiprocessing
import multiprocessing.pool
import pickle
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from rlkit.errors import RewardError
from rlkit.reward import RewardResult, Score, Task, Trajectory, per_group
from rlkit.rollout.judge import RewardSpec, load

__all__ = ["group_under_faults", "leaf_under_faults", "under_faults"]


def under_faults(spec: RewardSpec, *, whole_group: bool) -> RewardSpec:
    """The spec of the reward that calls `spec` under faults."""
    function = "group_under_faults" if whole_group else "leaf_under_faults"
    return RewardSpec(
        name=f"{spec.name} under faults",
        spec=f"{__name__}:{function}",
        deadline_s=spec.deadline_s,
        # Packed apart: the types of its settings may live in a file that the reward's process has to import first.
        settings={"inner": replace(spec, settings={}), "packed": pickle.dumps(dict(spec.settings))},
    )


def leaf_under_faults(task: Task, trajectory: Trajectory, *, inner: RewardSpec, packed: bytes) -> RewardResult:
    """What `inner` says of a trajectory when everything times out; `faults` counts how often something did."""
    function = _load(inner, packed)
    with _faults() as count:
        result = function(task, trajectory)
    return _counted(result, count[0])


@per_group
def group_under_faults(
    task: Task, trajectories: Sequence[Trajectory], *, inner: RewardSpec, packed: bytes
) -> list[RewardResult]:
    """The same of a group."""
    function = _load(inner, packed)
    with _faults() as count:
        results = list(function(task, trajectories))
    return [_counted(result, count[0]) for result in results]


def _load(inner: RewardSpec, packed: bytes) -> Any:
    load(inner)  # imports the types of its settings
    return load(replace(inner, settings=pickle.loads(packed)))[0]


def _counted(result: Any, faults: int) -> RewardResult:
    if isinstance(result, RewardError):
        return result
    if isinstance(result, Mapping):
        return Score(value=sum(result.values()), measured={"faults": faults})
    return Score(value=result.value if isinstance(result, Score) else result, measured={"faults": faults})


@contextmanager
def _faults() -> Iterator[list[int]]:
    """Count, and end at once, whatever waits with a deadline or opens a connection."""
    count = [0]

    def ends_in(error: BaseException, *, only_with_timeout: bool = False, real: Any = None, at: int = 1) -> Any:
        def call(*args: Any, **keywords: Any) -> Any:
            timeout = keywords.get("timeout", args[at] if len(args) > at else None)
            if only_with_timeout and timeout is None:
                return real(*args, **keywords)
            count[0] += 1
            raise error

        return call

    def alarm(real: Any, at: int) -> Any:
        def call(*args: Any) -> Any:
            handler = signal.getsignal(signal.SIGALRM)
            if args[at] > 0 and callable(handler):
                count[0] += 1
                handler(signal.SIGALRM, None)
            return real(*args)

        return call

    timed_out = TimeoutError("timed out")
    expired = subprocess.TimeoutExpired("command", 0)
    future, process, pooled = concurrent.futures.Future, subprocess.Popen, multiprocessing.pool.ApplyResult
    with (
        patch.object(socket.socket, "connect", ends_in(timed_out)),
        patch.object(socket, "create_connection", ends_in(timed_out)),
        patch.object(socket, "getaddrinfo", ends_in(timed_out)),
        patch.object(future, "result", ends_in(timed_out, only_with_timeout=True, real=future.result)),
        patch.object(process, "wait", ends_in(expired, only_with_timeout=True, real=process.wait)),
        patch.object(process, "communicate", ends_in(expired, only_with_timeout=True, real=process.communicate, at=2)),
        patch.object(pooled, "get", ends_in(multiprocessing.TimeoutError(), only_with_timeout=True, real=pooled.get)),
        patch.object(asyncio, "wait_for", ends_in(timed_out)),
        patch.object(signal, "alarm", alarm(signal.alarm, 0)),
        patch.object(signal, "setitimer", alarm(signal.setitimer, 1)),
        patch.object(time, "sleep", lambda seconds: None),  # pauses between retries
    ):
        yield count
