"""`rlkit doctor`: what this machine has, what rlkit needs, and the command that closes each gap.

The packages and their versions are read from rlkit's own metadata, so only `setup.py` states them.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlkit.models.pretrained import is_prepared, prepared_path

__all__ = ["Finding", "diagnose", "main"]

DISTRIBUTION = "rlkit-tree"
REQUIRED_EXTRAS = ("train", "cluster")
OPTIONAL_FIXES = {
    "sweep": ".venv/bin/pip install -c constraints.txt -e '.[sweep]'",
    "deepspeed": ".venv/bin/pip install -c constraints.txt -e '.[deepspeed]'",
    "tensorboard": ".venv/bin/pip install -c constraints.txt -e '.[tensorboard]'",
    "wandb": ".venv/bin/pip install -c constraints.txt -e '.[wandb]'",
    # vLLM needs an older transformers, so it gets an environment of its own.
    "vllm": "launch/setup-vllm",
}
"""Optional extra -> the command that adds it."""
INSTALL_AGAIN = "rm -f .venv/rlkit.stamp && launch/setup"

MISSING = {True: ("missing", "bold red"), False: ("absent", "yellow")}
"""Whether it is required -> the word and the style that mark a gap."""

GIB = 1 << 30
SHARED_MEMORY = Path("/dev/shm")
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""Bytes as text, or `max`; there inside a container of Linux."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    """Package or resource."""
    ok: bool
    """Whether what was found is what is needed."""
    found: str
    """Version, size or device."""
    needed: str
    """Version or size, in the same unit."""
    fix: str
    """The exact command that closes the gap; also there when `ok`."""
    required: bool = True
    """False: rlkit runs without it."""


def diagnose() -> list[Finding]:
    """Look at everything; a few seconds, nearly all of them the import of torch."""
    return [_python(), *_packages(), *_torch(), _small_model(), *_resources()]


def _python() -> Finding:
    return Finding(
        name="Python",
        ok=sys.version_info >= (3, 11),
        found=".".join(map(str, sys.version_info[:3])),
        needed=">=3.11",
        fix="rm -r .venv && launch/setup",
    )


def _packages() -> Iterator[Finding]:
    """Every requirement of rlkit but the tools of its developers."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        yield Finding(name="rlkit", ok=False, found="not installed", needed="installed", fix=INSTALL_AGAIN)
        return
    for requirement in map(Requirement, lines):
        extra = _extra(requirement)
        required = extra in ("", *REQUIRED_EXTRAS)
        if not required and extra not in OPTIONAL_FIXES:
            continue
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found = ""
        yield Finding(
            name=requirement.name,
            ok=bool(found) and requirement.specifier.contains(found, prereleases=True),
            found=found or "missing",
            needed=str(requirement.specifier),
            fix=INSTALL_AGAIN if required else OPTIONAL_FIXES[extra],
            required=required,
        )


def _extra(requirement: Requirement) -> str:
    """The extra that a requirement belongs to; empty for the core, `other` for none of ours."""
    if requirement.marker is None:
        return ""
    extras = (*REQUIRED_EXTRAS, *OPTIONAL_FIXES)
    return next((extra for extra in extras if requirement.marker.evaluate({"extra": extra})), "other")


def _torch() -> Iterator[Finding]:
    """Devices and kernels: the two facts for which a package has to be imported."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library that it needs is missing
        found = f"torch does not start: {error}"
        yield Finding(name="device", ok=False, found=found, needed="CPU or CUDA", fix=INSTALL_AGAIN)
        return
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    names = ", ".join(f"{gpu.name} {gpu.total_memory / GIB:.0f} GiB" for gpu in gpus)
    found = f"CUDA: {names}" if gpus else f"CPU, {torch.get_num_threads()} threads"
    yield Finding(name="device", ok=True, found=found, needed="CPU or CUDA", fix="nvidia-smi")
    yield Finding(
        name="MKL",
        ok=torch.backends.mkl.is_available(),
        found="in torch" if torch.backends.mkl.is_available() else "not in torch",
        needed="fast float32 on x86 CPUs",
        fix=".venv/bin/pip install --force-reinstall --no-deps -c constraints.txt torch",
        required=False,
    )


def _small_model() -> Finding:
    folder = prepared_path("smollm2-135m")
    ok = is_prepared(folder)
    return Finding(
        name="smollm2-135m",
        ok=ok,
        found=str(folder) if ok else "not prepared",
        needed="prepared once, 520 MiB",
        fix="launch/setup",
    )


def _resources() -> Iterator[Finding]:
    """Disk, memory, cores and the shared memory in which Ray keeps its objects."""
    memory, disk, cores = _memory_bytes(), shutil.disk_usage(".").free, _cores()
    yield _size("disk, free here", disk, 10 * GIB, fix="rm -r runs")
    yield _size("memory", memory, 8 * GIB, fix="use a machine with more memory (docker run --memory=8g ...)")
    yield Finding(
        name="cores",
        ok=cores >= 2,
        found=str(cores),
        needed=">=2",
        fix="docker run --cpus=2 ...",
        required=False,
    )
    if SHARED_MEMORY.is_dir():  # Linux only; elsewhere Ray uses files
        # Ray sizes its object store to 30 % of memory and falls back to slow files where this is smaller.
        needed = memory * 3 // 10
        fix = f"mount -o remount,size={-(-needed // GIB)}G /dev/shm"
        yield _size("/dev/shm", shutil.disk_usage(SHARED_MEMORY).total, needed, fix=fix, required=False)


def _size(name: str, found: int, needed: int, *, fix: str, required: bool = True) -> Finding:
    """A finding about bytes."""
    text = [f"{size / GIB:.1f} GiB" for size in (found, needed)]
    return Finding(name=name, ok=found >= needed, found=text[0], needed=f">={text[1]}", fix=fix, required=required)


def _memory_bytes() -> int:
    """Memory of the machine, or of the container where that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = MEMORY_LIMIT.read_text().strip() if MEMORY_LIMIT.is_file() else "max"
    return machine if text == "max" else min(machine, int(text))


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> int:
    """Print the findings, then the fixes on lines that can be copied; 1 where a required one is missing."""
    findings = diagnose()
    table = Table("", "what", "found", "needed", box=box.SIMPLE_HEAD)
    for finding in findings:
        mark, style = ("ok", "green") if finding.ok else MISSING[finding.required]
        needed = finding.needed if finding.required else f"{finding.needed} (optional)"
        table.add_row(Text(mark, style), *map(Text, (finding.name, finding.found, needed)))
    console = Console(highlight=False)
    console.print(table)
    for finding in findings:
        if not finding.ok:
            # Text, because "[wandb]" is no markup; soft_wrap leaves a long command in one piece.
            console.print(Text(f"{MISSING[finding.required][0]} {finding.name}: {finding.fix}"), soft_wrap=True)
    missing = [finding.name for finding in findings if finding.required and not finding.ok]
    console.print(Text(f"missing: {', '.join(missing)}" if missing else "everything required is here"))
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
