"""What travels to a cluster with a job: the files of the working folder, and the environment they run in."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlkit.config import SECRET
from rlkit.errors import RlkitError

__all__ = ["EXCLUDES", "FileBundle", "environment", "file_bundle"]

EXCLUDES = (".git", ".venv", "runs", "__pycache__", "*.egg-info")
"""Never sent, besides what .gitignore names."""
LIMIT = 500 << 20
"""Bytes of a working folder that Ray uploads."""
PASSED = ("RLKIT_", "HF_HUB_OFFLINE", "WANDB_MODE", "WANDB_BASE_URL")
"""Beginnings of environment variables that a job takes along; secrets stay behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileBundle:
    """The files that would be uploaded."""

    folder: Path
    files: tuple[tuple[str, int], ...]
    """(path inside the folder, bytes), the largest first."""

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(size for _, size in self.files)


def file_bundle(folder: Path) -> FileBundle:
    """The folder's files as Ray would upload them. Raises `RlkitError` where they are too many bytes."""
    command = ["git", "-C", str(folder), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True)
    if listed.returncode == 0:
        names = [name for name in listed.stdout.split("\0") if name]
    else:  # not a checkout
        names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    kept = [name for name in names if not _excluded(name) and (folder / name).is_file()]
    sizes = sorted(((name, (folder / name).stat().st_size) for name in kept), key=lambda item: (-item[1], item[0]))
    bundle = FileBundle(folder=folder, files=tuple(sizes))
    if bundle.num_bytes > LIMIT:
        largest = ", ".join(f"{name} ({size >> 20} MiB)" for name, size in sizes[:3])
        raise RlkitError(
            f"{folder}: {bundle.num_bytes >> 20} MiB are more than the {LIMIT >> 20} MiB that Ray uploads; the largest "
            f"files are {largest}; name them in .gitignore, or submit from a smaller folder"
        )
    return bundle


def _excluded(name: str) -> bool:
    return any(Path(part).match(pattern) for part in Path(name).parts for pattern in EXCLUDES)


def environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables of this process that the job gets."""
    source = os.environ if variables is None else variables
    return {k: source[k] for k in sorted(source) if k.startswith(PASSED) and not SECRET.search(k)}
