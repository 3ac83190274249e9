"""A checkpoint is complete, verified and bit-exact, or it does not exist; earlier ones survive whatever happens."""

from __future__ import annotations

import errno
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from rlkit.algorithms.grpo import ALGORITHM
from rlkit.checkpoint import CheckpointStore, read_checkpoint
from rlkit.data.packing import Batch, pack
from rlkit.errors import CheckpointError
from rlkit.learner.learner import Learner
from rlkit.learner.sharding import Replicated
from rlkit.learner.tree_policy import TreePolicy
from rlkit.recipe import Optim
from tests.forest import random_forest, tiny_model

STATE = {"learner": {"version": 3}, "ledger": [1, 2], "name": "Grüße"}


def write(folder: Path) -> None:
    """Two files, one of them in a folder of its own."""
    (folder / "model.bin").write_bytes(bytes(range(256)))
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocabulary.txt").write_text("a b c")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------------------------------------- writing and reading


def test_what_was_saved_is_read_back_whole(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    folder = store.save(40, write, STATE)
    found = store.latest()
    assert found is not None
    assert (found.folder, found.step, found.state) == (tmp_path / "checkpoints" / "step_000040", 40, STATE)
    assert contents(folder).keys() == {"manifest.json", "model.bin", "tokenizer/vocabulary.txt"}


def test_a_run_without_checkpoints_has_no_latest(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path).latest() is None


def test_the_newest_is_the_one_with_the_highest_step(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=9)
    for step in (999_999, 1_000_000, 5):
        store.save(step, write, {})
    assert [int(folder.name.removeprefix("step_")) for folder in store.folders()] == [5, 999_999, 1_000_000]


@pytest.mark.parametrize("keep", [1, 3])
def test_only_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    store = CheckpointStore(tmp_path, keep=keep)
    for step in range(5):
        store.save(step, write, {})
    assert [path.name for path in sorted(store.root.iterdir())] == [f"step_{s:06d}" for s in range(5 - keep, 5)]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, write, {"turn": 1})
    store.save(1, lambda folder: (folder / "other.bin").touch(), {"turn": 2})
    found = store.latest()
    assert found is not None and found.state == {"turn": 2}
    assert [path.name for path in store.root.iterdir()] == ["step_000001"]


# ---------------------------------------------------------------------------------------------- damage


def flip(folder: Path) -> None:
    content = bytearray((folder / "model.bin").read_bytes())
    content[100] ^= 1
    (folder / "model.bin").write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped bit": (flip, r"model\.bin: differs from its manifest"),
    "truncated file": (
        lambda folder: (folder / "tokenizer/vocabulary.txt").write_text("a b"),
        r"vocabulary\.txt: differs from its manifest",
    ),
    "missing file": (lambda folder: (folder / "model.bin").unlink(), r"model\.bin: missing"),
    "missing manifest": (lambda folder: (folder / "manifest.json").unlink(), r"step_000002: no manifest\.json"),
    "torn manifest": (lambda folder: os.truncate(folder / "manifest.json", 40), r"manifest\.json: unreadable"),
    "empty manifest": (lambda folder: os.truncate(folder / "manifest.json", 0), r"manifest\.json: unreadable"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_said_so(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store, (break_it, problem) = CheckpointStore(tmp_path), DAMAGE[damage]
    store.save(1, write, STATE)
    break_it(store.save(2, write, {}))
    found = store.latest()
    assert found is not None and (found.step, found.state) == (1, STATE)
    assert re.search(rf"{problem}.*; going on from .*step_000001", caplog.text)


@pytest.mark.parametrize("damage", DAMAGE)
def test_where_all_checkpoints_are_damaged_nothing_begins_anew_by_itself(tmp_path: Path, damage: str) -> None:
    store, (break_it, problem) = CheckpointStore(tmp_path), DAMAGE[damage]
    for step in (1, 2):
        break_it(store.save(step, write, {}))
    with pytest.raises(CheckpointError, match=rf"{problem}.*; no checkpoint before it is whole, remove .*checkpoints"):
        store.latest()
    assert len(store.folders()) == 2


def test_the_step_of_a_torn_checkpoint_is_saved_over_it(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        folder = store.save(step, write, {})
    os.truncate(folder / "manifest.json", 40)
    store.save(2, write, STATE)
    found = store.latest()
    assert found is not None and (found.step, found.state) == (2, STATE)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "unreadable"),
        ("[]", "unreadable"),
        ('{"schema": 1, "step": 1, "state": {}}', "unreadable"),
        ('{"schema": 1, "step": 1, "state": {}, "files": {"model.bin": {}}}', "unreadable"),
        ('{"schema": 2}', "schema 2, this version reads 1"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    folder = CheckpointStore(tmp_path).save(1, write, {})
    (folder / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"manifest\.json: {problem}"):
        read_checkpoint(folder)


# ---------------------------------------------------------------------------------------------- crashes, full disks


def test_a_process_killed_while_writing_leaves_a_draft_that_is_ignored_and_cleaned(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    before = contents(store.save(1, write, STATE))
    program = f"""
import os, signal
from pathlib import Path
from rlkit.checkpoint import CheckpointStore
def write(folder):
    (folder / "model.bin").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
CheckpointStore(Path({str(tmp_path)!r})).save(2, write, {{}})
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    assert (store.root / "step_000002.tmp" / "model.bin").read_bytes() == b"half"
    found = store.latest()
    assert found is not None and found.step == 1 and contents(found.folder) == before
    store.save(3, write, {})
    assert sorted(path.name for path in store.root.iterdir()) == ["step_000001", "step_000003"]


def test_a_crash_while_an_old_checkpoint_is_removed_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.save(1, write, {})
    with monkeypatch.context() as patch:
        patch.setattr("rlkit.checkpoint.shutil.rmtree", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.save(2, write, {})
    assert [folder.name for folder in store.folders()] == ["step_000002"]
    store.save(3, write, {})
    assert [path.name for path in store.root.iterdir()] == ["step_000003"]


def test_a_disk_that_is_full_leaves_earlier_checkpoints_and_no_draft(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    before = contents(store.save(1, write, STATE))

    def full(folder: Path) -> None:
        write(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match=r"step_000002: could not be written \(.*No space left.*\); earlier"):
        store.save(2, full, {})
    assert [path.name for path in store.root.iterdir()] == ["step_000001"]
    assert contents(store.folders()[0]) == before and store.latest() is not None


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Writing more to one file fails, as on a full disk or over a quota."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# ---------------------------------------------------------------------------------------------- with a learner


def make_learner() -> Learner:
    optim = Optim(lr=1e-2, weight_decay=0.1)
    return Learner(Replicated(TreePolicy(tiny_model()), optim), ALGORITHM, ALGORITHM.config(), optim, total_updates=4)


def batch(seed: int) -> Batch:
    return pack(ALGORITHM.credit(random_forest(seed), ALGORITHM.config(), None), 4096)


@pytest.mark.parametrize("num_bytes", [10_000, 50_000], ids=["weights do not fit", "moments do not fit"])
def test_a_learner_that_cannot_write_costs_the_checkpoint_and_nothing_else(tmp_path: Path, num_bytes: int) -> None:
    learner, store = make_learner(), CheckpointStore(tmp_path)
    learner.update([batch(0)])
    before = contents(store.save(1, learner.save, {}))
    assert len(before["model.safetensors"]) in range(10_000, 50_000) and len(before["optimizer.safetensors"]) > 50_000
    with files_of_at_most(num_bytes), pytest.raises(CheckpointError, match=r"step_000002: could not be written"):
        store.save(2, learner.save, {})
    assert [path.name for path in store.root.iterdir()] == ["step_000001"]
    assert contents(store.folders()[0]) == before
    store.save(3, learner.save, {})
    assert [folder.name for folder in store.folders()] == ["step_000001", "step_000003"]


def test_two_updates_saved_and_two_more_after_loading_are_four_to_the_bit(tmp_path: Path) -> None:
    straight, first, second = make_learner(), make_learner(), make_learner()
    for seed in range(4):
        straight.update([batch(seed)])
    for seed in range(2):
        first.update([batch(seed)])
    store = CheckpointStore(tmp_path)
    store.save(2, first.save, {"learner": first.counters()})
    found = store.latest()
    assert found is not None
    second.load(found.folder, found.state["learner"])
    for seed in range(2, 4):
        second.update([batch(seed)])
    assert second.counters() == straight.counters() == {"version": 4, "updates": 4, "skipped": 0}
    assert all(torch.equal(second.weights()[name], weight) for name, weight in straight.weights().items())
