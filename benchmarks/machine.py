"""What a number was measured on, and how busy the machine was with other things meanwhile. Standard library only.

Counters of the processor and of memory are Linux's; elsewhere they read as nothing.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "busy_s", "machine", "peak_bytes", "reset_peak", "wait_until_quiet"]

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "transformers", "accelerate", "numpy", "trl")


def machine(threads: int) -> dict[str, Any]:
    """Processor, versions, commit and load, for the head of a result."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: found for name in PACKAGES if (found := _version(name))},
        "commit": _commit(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
    }


def _cpu() -> str:
    """Name of the processor and its widest vector unit, which decides the speed of matrix products."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    fields: dict[str, str] = {}
    for name, _, value in (line.partition(":") for line in info.read_text().splitlines()):
        fields[name.strip()] = value.strip()
    units = [unit for unit in ("avx2", "avx512f", "amx_tile") if unit in fields.get("flags", "").split()]
    numbers = "/".join(fields.get(name, "?") for name in ("cpu family", "model", "stepping"))
    return f"{fields.get('model name', platform.machine())}, family/model/stepping {numbers}, {' '.join(units)}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    """Short hash, with a plus where what is measured has changes that are not committed."""

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno", "rlkit") else "")


def busy_s() -> float:
    """Processor seconds that all processes of this machine, and its host, have taken so far."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, stat.read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def wait_until_quiet(limit_s: float, share: float = 0.1) -> None:
    """Return once others take less than `share` of the processor for two seconds, or after `limit_s`."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        before = busy_s()
        time.sleep(2)
        if busy_s() - before < share * 2 * (os.cpu_count() or 1):
            return


def reset_peak() -> None:
    """Forget the largest memory of this process so far."""
    counter = Path("/proc/self/clear_refs")
    if counter.exists():
        counter.write_text("5")


def peak_bytes() -> int:
    """Largest resident memory of this process since `reset_peak`."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
