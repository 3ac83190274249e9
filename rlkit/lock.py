"""One driver per run folder: a lock that the kernel lets go when its holder dies, however it dies.

`run_dir/lock` says who holds it, for the message to whoever comes second; the lock itself is `flock`, so a file that a
killed run left behind locks nothing. On a network file system without locks a warning is logged instead.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlkit.errors import RecipeError

__all__ = ["locked"]

log = logging.getLogger(__name__)
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the folder while inside. Raises `RecipeError` naming the process that holds it already."""
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / "lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)  # never inherited by a worker that outlives us
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise RecipeError(
                    "out", f"'{run_dir}' is in use by {_holder(path)}; wait for it, or choose another `out`"
                ) from error
            log.warning("%s: this file system has no locks, so a second run in it would not be noticed", run_dir)
        me = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(me).encode(), 0)
        yield
    finally:
        os.close(handle)  # which is what unlocks it


def _holder(path: Path) -> str:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return f"process {held['pid']} on {held['host']} since {held['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has only just been created
        return "another process"
