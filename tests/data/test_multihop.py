"""The published question sets: on a small copy of their layout, and on the real files where RLKIT_DATA names
them.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlkit.data.multihop import Multihop
from rlkit.errors import DataError

QUESTION = {
    "id": "q1",
    "question": "Where was the creator of the Lap Engine educated?",
    "answers": ["University of Glasgow"],
    "hops": 2,
    "type": "2hop",
    "supporting_titles": ["Lap Engine", "James Watt"],
    "supporting_ids": ["p1", "p2"],
    "decomposition": [{"question": "Who developed Lap Engine?", "answer": "James Watt", "supporting_id": "p1"}],
    "context_ids": ["p1", "p2", "gone"],
    "source": "somewhere",
}
CORPUS = [
    {"id": "p1", "title": "Lap Engine", "text": "Made by Watt."},
    {"id": "p2", "title": "James Watt", "text": "x"},
]


def write(root: Path, stem: str, rows: Sequence[dict[str, Any]]) -> None:
    file = root / f"{stem}.jsonl.gz"
    file.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(file, "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "dev", "test_public"):
        write(tmp_path, f"musique/{split}", [{**QUESTION, "id": f"{split}-{n}"} for n in range(3)])
    write(tmp_path, "musique/corpus", CORPUS)
    write(tmp_path, "qa_only/musique_train", [{"id": "more", "question": "?", "answers": ["x"]}])
    write(tmp_path, "qa_only/musique_dev", [])
    return tmp_path


def source(folder: Path, **config: Any) -> Multihop:
    return Multihop(Multihop.Config(path=str(folder), **{"datasets": ["musique"], **config}))


def test_a_task_keeps_what_rewards_and_experts_need(folder: Path) -> None:
    task = source(folder).tasks("dev")[0]
    assert (task.id, task.answers) == ("dev-0", ("University of Glasgow",))
    assert task.data == {
        "dataset": "musique",
        "hops": 2,
        "type": "2hop",
        "supporting_titles": ["Lap Engine", "James Watt"],
        "supporting_ids": ["p1", "p2"],
        "decomposition": QUESTION["decomposition"],
        "context_titles": ["Lap Engine", "James Watt", ""],
    }


def test_passages_are_those_of_the_corpus(folder: Path) -> None:
    assert [passage.title for passage in source(folder).passages()] == ["Lap Engine", "James Watt"]


def test_test_is_the_published_part_and_a_limit_takes_the_first(folder: Path) -> None:
    assert [task.id for task in source(folder, limit=2).tasks("test")] == ["test_public-0", "test_public-1"]


def test_unlabelled_questions_join_train_only_when_asked(folder: Path) -> None:
    assert [task.id for task in source(folder).tasks("train")] == ["train-0", "train-1", "train-2"]
    asked = source(folder, qa_only=True)
    assert asked.tasks("train")[-1].id == "more"
    assert len(asked.tasks("dev")) == 3


def test_inferred_labels_are_marked_as_such(tmp_path: Path) -> None:
    weak = {
        "id": "w",
        "question": "?",
        "answers": ["x"],
        "type_inferred": "compositional",
        "supporting_titles_inferred": ["A"],
    }
    write(tmp_path, "2wikimultihopqa/train", [QUESTION])
    write(tmp_path, "2wikimultihopqa/train_weak", [weak])
    write(tmp_path, "2wikimultihopqa/corpus", CORPUS)
    tasks = source(tmp_path, datasets=["2wikimultihopqa"], weak=True).tasks("train")
    assert tasks[1].data == {
        "dataset": "2wikimultihopqa",
        "type": "compositional",
        "supporting_titles": ["A"],
        "inferred": True,
    }


def test_a_missing_file_names_the_nearest_that_exists(folder: Path) -> None:
    (folder / "musique/dev.jsonl.gz").unlink()
    with pytest.raises(DataError, match=r"no file .*musique/dev\.jsonl\.gz; "):
        source(folder).tasks("dev")
    with pytest.raises(DataError, match=r"path: no folder .*musiqe; did you mean '.*musique'\?"):
        source(folder / "musiqe").tasks("dev")


def test_a_broken_file_names_its_line(folder: Path) -> None:
    write(folder, "musique/dev", [QUESTION, {"id": "q2", "question": "", "answers": ["x"]}])
    with pytest.raises(DataError, match=r"dev\.jsonl\.gz:2: question missing or empty"):
        source(folder).tasks("dev")
    with gzip.open(folder / "musique/dev.jsonl.gz", "wt") as lines:
        lines.write('{"id": \n')
    with pytest.raises(DataError, match=r"dev\.jsonl\.gz:1: cannot be read"):
        source(folder).tasks("dev")
    file = folder / "musique/train.jsonl.gz"
    file.write_bytes(file.read_bytes()[:-20])  # a download that stopped
    with pytest.raises(DataError, match="cannot be read"):
        source(folder).tasks("train")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"datasets": ["hotpot"]}, "unknown 'hotpot'; did you mean 'hotpotqa'"),
        ({"datasets": []}, "datasets: is empty"),
        ({"datasets": ["musique", "musique"]}, "names one twice"),
        ({"limit": 0}, "limit: 0 is below 1"),
    ],
)
def test_impossible_settings_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Multihop.Config(**{"path": "x", **setting})


REAL = Path(os.environ.get("RLKIT_DATA", "")) / "multihop_qa"
real = pytest.mark.skipif(
    "RLKIT_DATA" not in os.environ or not REAL.is_dir(), reason="RLKIT_DATA names no folder with multihop_qa"
)


@real
@pytest.mark.parametrize(
    ("dataset", "sizes", "num_passages"),
    [
        ("hotpotqa", (1330, 200, 300), 23520),
        ("2wikimultihopqa", (214, 100, 150), 9615),
        ("musique", (198, 60, 100), 10214),
        ("nq", (2005, 150, 300), 14359),
    ],
)
def test_the_real_sets_have_the_sizes_that_they_state(dataset: str, sizes: tuple[int, ...], num_passages: int) -> None:
    data = source(REAL, datasets=[dataset])
    tasks = {split: data.tasks(split) for split in ("train", "dev", "test")}
    assert tuple(map(len, tasks.values())) == sizes
    assert len(data.passages()) == num_passages
    ids = [task.id for found in tasks.values() for task in found]
    assert len(set(ids)) == len(ids)
    passages = {passage.id for passage in data.passages()}
    for task in tasks["dev"]:
        assert set(task.data["supporting_ids"]) <= passages
        json.dumps(dict(task.data))  # plain values only


@real
def test_a_set_without_training_questions_says_what_it_has() -> None:
    with pytest.raises(DataError, match=r"did you mean '.*bamboogle/dev"):
        source(REAL, datasets=["bamboogle"]).tasks("train")
