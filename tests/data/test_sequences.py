"""Histories and targets: on a small shop, and on the real files where RLKIT_DATA names them."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlkit.data.sequences import Sequences
from rlkit.errors import DataError
from tests.catalogue.shop import ITEMS, USERS, text, write_shop


def shop(tmp_path: Path, files: dict[str, Any] | None = None, **settings: Any) -> Sequences:
    write_shop(tmp_path, **(files or {}))
    return Sequences(Sequences.Config(path=str(tmp_path), dataset="shop", **settings))


def test_the_last_item_is_the_test_target_and_the_one_before_it_the_validation_target(tmp_path: Path) -> None:
    source = shop(tmp_path)
    [first, second] = source.tasks("test")
    assert (first.question, first.answers) == (text(10, 11, 12, 13), (text(14),))
    assert (second.question, second.answers) == (text(13, 12), (text(11),))
    assert [task.answers[0] for task in source.tasks("dev")] == [text(13), text(12)]


def test_no_training_task_knows_a_held_out_item(tmp_path: Path) -> None:
    source = shop(tmp_path)
    assert [(task.question, task.answers[0]) for task in source.tasks("train")] == [
        (text(10), text(11)),
        (text(10, 11), text(12)),
    ]
    assert source.popularity == Counter({10: 1, 11: 1, 12: 1, 13: 1})  # user 3 is too short to train on


def test_training_tasks_may_be_the_last_item_or_a_whole_sequence(tmp_path: Path) -> None:
    assert [task.answers for task in shop(tmp_path, train="last").tasks("train")] == [(text(12),)]
    whole = shop(tmp_path, train="sequences").tasks("train")
    assert [(task.question, task.answers[0]) for task in whole] == [("", text(10, 11, 12)), ("", text(13))]


def test_a_history_keeps_its_latest_items(tmp_path: Path) -> None:
    assert shop(tmp_path, max_history=2).tasks("test")[0].question == text(12, 13)


def test_every_item_of_a_long_sequence_is_a_target_once(tmp_path: Path) -> None:
    items = [10, 11, 12, 13, 14, 10, 11, 12, 13, 14, 15]  # nine for training
    source = shop(tmp_path, {"sequences": [{"user_id": 1, "items": items}]}, max_history=4, train="sequences")
    assert [(case.history, case.targets) for case in source.cases("train", "sequences")] == [
        ((), (10, 11, 12, 13)),
        ((12, 13), (14, 10)),
        ((14, 10), (11, 12)),
        ((11, 12), (13,)),
    ]
    assert len({task.id for task in source.tasks("train")}) == 4


def test_a_user_with_one_training_item_has_an_empty_history_only_as_a_sequence(tmp_path: Path) -> None:
    files = {"sequences": [{"user_id": 1, "items": [10, 11, 12]}]}
    assert shop(tmp_path, files).tasks("train") == []
    assert shop(tmp_path, files, train="sequences").tasks("train")[0].question == ""


def test_a_data_set_cut_by_time_never_reads_its_sequences(tmp_path: Path) -> None:
    row = {"user_id": "A"}
    files = {
        "sequences": [{"user_id": "A", "items": [999]}],  # would be refused
        "train": [{**row, "history": [10], "target": 11}, {**row, "history": [10, 11], "target": 12}],
        "valid": [{**row, "history": [10, 11, 12], "target": 13}],
        "test": [{**row, "history": [], "target": 14}],
    }
    source = shop(tmp_path, files)
    assert source.by_time
    assert source.train_sequences == [("A", (10, 11, 12))]
    assert [task.answers[0] for task in source.tasks("dev")] == [text(13)]
    assert source.tasks("test")[0].question == ""  # an empty history is a task


def test_titles_travel_with_the_task(tmp_path: Path) -> None:
    data = shop(tmp_path).tasks("dev")[1].data
    assert data["history_titles"] == ["thing 13"] and data["target_titles"] == ["thing 12"]
    assert data["levels"] == 3


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"sequences": [*USERS, {"user_id": 9, "items": [10, 99, 11]}]}, r"gz:4: item 99 is none of the 6 items"),
        ({"sequences": [{"user_id": 9}]}, r"gz:1: items missing"),
        ({"items": [*ITEMS, {"item_id": 20}]}, r"1 of 7 items have no semantic ID"),
    ],
)
def test_data_that_do_not_fit_together_are_refused_with_their_place(
    tmp_path: Path, files: dict[str, Any], problem: str
) -> None:
    with pytest.raises(DataError, match=problem):
        shop(tmp_path, files).tasks("test")


def test_a_misspelt_data_set_or_folder_is_named_with_its_neighbour(tmp_path: Path) -> None:
    write_shop(tmp_path)
    with pytest.raises(DataError, match=r"task.dataset: unknown 'shp' .*did you mean 'shop'"):
        Sequences(Sequences.Config(path=str(tmp_path), dataset="shp"))
    with pytest.raises(DataError, match=r"task\.path: no folder"):
        Sequences(Sequences.Config(path=str(tmp_path / "none"), dataset="shop"))
    with pytest.raises(DataError, match="unknown split 'tset'; did you mean 'test'"):
        shop(tmp_path).tasks("tset")


@pytest.mark.parametrize("change", [{"max_history": 0}, {"limit": 0}])
def test_settings_out_of_range_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="is below 1"):
        Sequences.Config(path=".", **change)


REAL = Path(os.environ.get("RLKIT_DATA", "")) / "seqrec"
real = pytest.mark.skipif(
    "RLKIT_DATA" not in os.environ or not REAL.is_dir(), reason="RLKIT_DATA names no folder with seqrec"
)


@real
@pytest.mark.parametrize(
    ("dataset", "train", "dev", "test", "shared"),
    [("office", 8670, 4866, 4866, 15), ("instruments", 156_662, 24_772, 24_772, 25)],
)
def test_the_published_sizes(dataset: str, train: int, dev: int, test: int, shared: int) -> None:
    source = Sequences(Sequences.Config(path=str(REAL), dataset=dataset))
    counts = [len(source.cases(split)) for split in ("dev", "test")]
    assert counts == [dev, test]
    items = source.catalogue
    assert len(items.item_ids) - len(items.rows_of_sid) == shared
    if dataset == "office":
        assert sum(len(sequence) - 1 for _, sequence in source.train_sequences) == train
        newest = {item for _, sequence in source.train_sequences for item in sequence}
        assert newest <= set(items.item_ids)


@real
def test_movies_have_no_semantic_ids_but_can_be_counted() -> None:
    source = Sequences(Sequences.Config(path=str(REAL), dataset="ml-latest-small"))
    assert len(source.cases("test")) == 671
    with pytest.raises(DataError, match="9125 of 9125 items have no semantic ID"):
        source.tasks("test")
