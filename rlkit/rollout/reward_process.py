"""Rewards in a process of their own: a hang, a crash or a flood of output costs one call and not the run.

    parent ── length, pickle of (tree, calls) ──> child's stdin       one message per tree
    parent <── one JSON line per call ──────────  child's stdout      as soon as it is known
    parent <── what rewards print ──────────────  child's stderr      the end of it is kept for the log

Calls are answered in order. So when the deadline passes or the child dies, the first call without an answer is to
blame: it is recorded as failed, a new child gets the rest, and answers already here are kept. A child may be killed
from outside too, by a machine short of memory, say: a call whose child died is asked once more before it is blamed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import pickle
import queue
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import IO, Any

from rlkit.errors import RecipeError, RewardError
from rlkit.network import restrict
from rlkit.records import Tree
from rlkit.rollout.judge import GROUP, Call, Outcome, RewardSpec, judge, load, spoken

__all__ = ["RewardProcess", "serve"]

log = logging.getLogger(__name__)
_LENGTH = struct.Struct("<Q")
_START_DEADLINE_S = 120.0  # importing a reward may load a library or a model
_KEPT_OUTPUT = 2000  # bytes


class RewardProcess:
    """The parent's end of one child. Its methods block; one thread at a time may call `run`."""

    def __init__(self, specs: Sequence[RewardSpec], *, allow: Sequence[str] = ()) -> None:
        """`allow`: hosts that the child may connect to (`rlkit.network`)."""
        self._specs, self._allow = tuple(specs), tuple(allow)
        self._child: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._printed = b""
        self._drainer = threading.Thread()
        self.per_group: tuple[bool, ...] = ()
        """For each spec, whether it judges the group at once; known after `start`."""

    def start(self) -> None:
        """Start the child and let it import the rewards.

        Raises `RecipeError` naming `rewards[i].kind` if one cannot be imported, `RewardError` if importing
        kills the child.
        """
        self._child = subprocess.Popen(
            [sys.executable, "-u", "-P", "-c", "from rlkit.rollout.reward_process import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            start_new_session=True,  # a process group, killed with everything that a reward started
        )
        assert self._child.stdin is not None and self._child.stderr is not None
        os.set_blocking(self._child.stdin.fileno(), False)
        self._unread = self._printed = b""
        self._drainer = threading.Thread(target=self._drain, args=(self._child.stderr,), daemon=True)
        self._drainer.start()
        # Settings are pickled apart: their types may live in a file that the child has to import first.
        rewards = [(replace(spec, settings={}), pickle.dumps(dict(spec.settings))) for spec in self._specs]
        try:
            self._send(pickle.dumps((self._allow, rewards)), _START_DEADLINE_S)
            answer = self._receive(_START_DEADLINE_S)
        except _Lost as lost:
            printed = self.kill()
            raise RewardError(f"the process of the rewards did not start: {lost}; it printed: {printed}") from lost
        if "problem" in answer:
            self.kill()
            raise RecipeError(answer["path"], answer["problem"])
        self.per_group = tuple(answer["per_group"])

    def run(self, tree: Tree, calls: Sequence[Call]) -> list[list[Outcome]]:
        """The outcomes of each call, in order; what goes wrong is in them."""
        done: list[list[Outcome]] = []
        asked_again = -1
        packed = pickle.dumps(tree, protocol=pickle.HIGHEST_PROTOCOL)
        while len(done) < len(calls):
            rest = calls[len(done) :]
            try:
                if self._child is None or self._child.poll() is not None:
                    self.kill()
                    self.start()
                self._send(pickle.dumps((packed, rest)), self._specs[rest[0].reward].deadline_s)
                for call in rest:
                    answer = self._receive(self._specs[call.reward].deadline_s)
                    done.append([Outcome(**outcome) for outcome in answer])
            except _Lost as lost:
                call = calls[len(done)]
                log.warning("reward %s: %s; it printed: %s", self._specs[call.reward].name, lost, self.kill())
                if isinstance(lost, _Died) and asked_again != len(done):
                    asked_again = len(done)
                else:
                    done.append(_fail(call, tree, str(lost)))
            except (RewardError, RecipeError) as error:
                done += [_fail(call, tree, str(error)) for call in rest]
        return done

    def kill(self) -> str:
        """End the child and everything that it started; returns the end of what it printed."""
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):  # it may be gone
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
            # The last words. Only a process that broke away from the group would keep the pipe open.
            self._drainer.join(timeout=0.2)
            for pipe in (self._child.stdin, self._child.stdout):
                assert pipe is not None
                pipe.close()
            self._child = None
        return self._printed.decode(errors="replace").strip() or "nothing"

    def _send(self, data: bytes, deadline_s: float) -> None:
        assert self._child is not None and self._child.stdin is not None
        pipe, end = self._child.stdin.fileno(), time.monotonic() + deadline_s
        rest = memoryview(_LENGTH.pack(len(data)) + data)
        while rest:
            self._wait(pipe, select.POLLOUT, end, deadline_s)
            try:
                rest = rest[os.write(pipe, rest) :]
            except BrokenPipeError:
                raise self._death() from None

    def _receive(self, deadline_s: float) -> Any:
        assert self._child is not None and self._child.stdout is not None
        pipe, end = self._child.stdout.fileno(), time.monotonic() + deadline_s
        while b"\n" not in self._unread:
            self._wait(pipe, select.POLLIN, end, deadline_s)
            if not (data := os.read(pipe, 1 << 16)):
                raise self._death()
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        try:
            return json.loads(line)
        except ValueError:
            raise _Lost("what it answered is garbled") from None

    @staticmethod
    def _wait(pipe: int, event: int, end: float, deadline_s: float) -> None:
        """Until `pipe` is ready or the deadline has passed."""
        poll = select.poll()
        poll.register(pipe, event)
        if not poll.poll(max(end - time.monotonic(), 0) * 1000):
            raise _Lost(f"deadline of {deadline_s:g} s")

    def _death(self) -> _Died:
        assert self._child is not None
        try:
            code = self._child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return _Died("its process closed the connection")
        return _Died(
            f"its process died of {signal.Signals(-code).name}" if code < 0 else f"its process exited ({code})"
        )

    def _drain(self, pipe: IO[bytes]) -> None:
        with pipe:
            while data := pipe.read(1 << 16):
                self._printed = (self._printed + data)[-_KEPT_OUTPUT:]


class _Lost(Exception):
    """The child does not answer any more."""


class _Died(_Lost):
    """It is gone, by its own doing or not."""


def _fail(call: Call, tree: Tree, why: str) -> list[Outcome]:
    return [Outcome.failed(why)] * (len(spoken(tree)) if call.leaf == GROUP else 1)


def serve() -> None:
    """The child: import the rewards, then answer trees until the parent closes the pipe."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # `input()` in a reward finds nothing
    os.dup2(2, 1)  # `print` in a reward goes to the log
    faulthandler.enable()

    def answer(value: Any) -> None:
        answers.write(json.dumps(value).encode() + b"\n")
        answers.flush()

    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, waiting), daemon=True).start()
    loaded = []
    try:
        allow, rewards = pickle.loads(waiting.get())
        restrict(allow)  # before anything of a plug-in runs
        for number, (spec, settings) in enumerate(rewards):
            path = f"rewards[{number}].kind"
            load(spec, path=path)  # imports the types that its settings may have
            loaded.append(load(replace(spec, settings=pickle.loads(settings)), path=path))
    except RecipeError as error:
        answer({"path": error.path, "problem": str(error).removeprefix(f"{error.path}: ")})
        return
    answer({"per_group": [per_group for _, per_group in loaded]})
    while True:
        packed, calls = pickle.loads(waiting.get())
        tree: Tree = pickle.loads(packed)
        for call in calls:
            answer([outcome.plain() for outcome in judge(loaded[call.reward][0], tree, call.leaf)])


def _listen(requests: IO[bytes], waiting: queue.SimpleQueue[bytes]) -> None:
    """Put requests into the queue. When the parent is gone the child ends, whatever a reward is doing."""
    while header := requests.read(_LENGTH.size):
        waiting.put(requests.read(_LENGTH.unpack(header)[0]))
    os._exit(0)
