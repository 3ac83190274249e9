"""Checkpoints: one folder, one manifest, all or nothing.

    checkpoints/step_000040/
        manifest.json       step, state of ledger, cursor and counters, and size and hash of every other file
        model.safetensors   ...

A folder is written under a temporary name, synced, and renamed; it is renamed again before it is removed. So a folder
with its final name is complete, and a crash leaves a `.tmp` folder that the next save removes. What a disk tears
afterwards is noticed by its hash, and a run goes on from the checkpoint before.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkit.errors import CheckpointError

__all__ = ["Checkpoint", "CheckpointStore", "read_checkpoint"]

log = logging.getLogger(__name__)
SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    step: int
    """Steps finished when it was written."""
    state: Mapping[str, Any]
    """Plain JSON: ledger, data cursor, learner counters, recipe fingerprint."""


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(folder: Path) -> None:
    """Under a name that no longer claims to be complete: a crash may leave half of it, for the next save to remove."""
    shutil.rmtree(folder.rename(folder.with_name(f"{folder.name}.old.tmp")), ignore_errors=True)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read and verify a checkpoint. Raises `CheckpointError` naming the file that is missing, torn or changed."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        raise CheckpointError(f"{folder}: no manifest.json; it is not a complete checkpoint")
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        if content.get("schema") != SCHEMA:
            raise CheckpointError(f"{manifest}: schema {content.get('schema')}, this version reads {SCHEMA}")
        files = {str(name): (int(entry["bytes"]), str(entry["blake2b"])) for name, entry in content["files"].items()}
        step, state = int(content["step"]), content["state"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{manifest}: unreadable ({error})") from error
    for name, (num_bytes, digest) in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing")
        if path.stat().st_size != num_bytes or _digest(path) != digest:
            raise CheckpointError(f"{path}: differs from its manifest, so it is corrupt")
    return Checkpoint(folder=folder, step=step, state=state)


class CheckpointStore:
    """The checkpoints of one run folder."""

    def __init__(self, run_dir: Path, *, keep: int = 2) -> None:
        self.root = run_dir / "checkpoints"
        self.keep = keep

    def folders(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        found = {p.name.removeprefix("step_"): p for p in self.root.glob("step_*") if p.is_dir()}
        return [found[step] for step in sorted(filter(str.isdigit, found), key=int)]

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, verified; None if there never was one.

        A torn one is passed over with a warning. Raises `CheckpointError` where all are torn: beginning anew would
        overwrite them.
        """
        problems = []
        for folder in reversed(self.folders()):
            try:
                found = read_checkpoint(folder)
            except CheckpointError as error:
                problems.append(error)
                continue
            for problem in problems:
                log.warning("%s; going on from %s", problem, folder)
            return found
        if problems:
            raise CheckpointError(f"{problems[0]}; no checkpoint before it is whole, remove {self.root} to begin anew")
        return None

    def save(self, step: int, write: Callable[[Path], None], state: Mapping[str, Any]) -> Path:
        """Let `write` fill a folder, add the manifest, and make it visible at once.

        Raises `CheckpointError` (disk full, no permission) and leaves earlier checkpoints as they were.
        """
        final = self.root / f"step_{step:06d}"
        draft = self.root / f"step_{step:06d}.tmp"
        try:
            for stale in self.root.glob("*.tmp"):
                shutil.rmtree(stale, ignore_errors=True)
            draft.mkdir(parents=True)
            write(draft)
            self._seal(draft, step, state)
            if final.exists():  # the same step again after a resume: the old one is as good, replace it whole
                _remove(final)
            draft.rename(final)
            _sync(self.root)
            for old in self.folders()[: -self.keep]:
                _remove(old)
        except Exception as error:  # a full disk is an OSError here, and other types in safetensors, torch and Ray
            shutil.rmtree(draft, ignore_errors=True)
            raise CheckpointError(f"{final}: could not be written ({error}); earlier checkpoints are intact") from error
        return final

    def _seal(self, draft: Path, step: int, state: Mapping[str, Any]) -> None:
        """Bring what was written to the disk, and the manifest after it."""
        files = {}
        for path in sorted(p for p in draft.rglob("*") if p.is_file()):
            _sync(path)
            files[path.relative_to(draft).as_posix()] = {"bytes": path.stat().st_size, "blake2b": _digest(path)}
        manifest = draft / "manifest.json"
        content = {"schema": SCHEMA, "step": step, "files": files, "state": dict(state)}
        manifest.write_text(json.dumps(content, indent=1), encoding="utf-8")
        _sync(manifest)
        _sync(draft)
