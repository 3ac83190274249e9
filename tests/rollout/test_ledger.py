"""The book of draws, and the stream that they come from."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkit.errors import CheckpointError, DataError, LedgerError
from rlkit.records import Task
from rlkit.rollout.ledger import Draw, Ledger, TaskStream

TASKS = [Task(id=f"q{i}", question="?") for i in range(5)]


def draws(*numbers: int) -> list[Draw]:
    return [Draw(task=TASKS[n % 5], number=n) for n in numbers]


def test_an_epoch_holds_every_task_once_in_an_order_of_its_own():
    stream = TaskStream(TASKS, seed=1)
    epochs = [[d.task.id for d in stream.draw(5)] for _ in range(3)]
    assert all(sorted(epoch) == ["q0", "q1", "q2", "q3", "q4"] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert epochs[0] != [d.task.id for d in TaskStream(TASKS, seed=2).draw(5)]


def test_a_draw_has_its_number_its_epoch_and_an_address_that_no_other_draw_has():
    found = TaskStream(TASKS, seed=1).draw(12)
    assert [d.number for d in found] == list(range(12))
    assert [d.epoch for d in found] == [0] * 5 + [1] * 5 + [2] * 2
    assert len({d.address for d in found}) == 12
    assert found[0].address == found[0].task.id
    assert found[11].address == f"{found[11].task.id}@epoch2"


@given(sizes=st.lists(st.integers(0, 7), max_size=6))
def test_draws_do_not_depend_on_how_many_are_taken_at_once(sizes):
    stream = TaskStream(TASKS, seed=3)
    found = [d for size in sizes for d in stream.draw(size)]
    assert found == TaskStream(TASKS, seed=3).draw(sum(sizes))


def test_a_restored_stream_goes_on_where_it_was():
    stream = TaskStream(TASKS, seed=1)
    stream.draw(7)
    state = json.loads(json.dumps(stream.state()))
    expected = stream.draw(4)
    again = TaskStream(TASKS, seed=1)
    again.restore(state)
    assert again.draw(4) == expected
    assert again.at(8) == expected[1]


def test_a_stream_of_other_tasks_or_another_seed_is_not_restored():
    state = TaskStream(TASKS, seed=1).state()
    for other in (TaskStream(TASKS[1:], seed=1), TaskStream(TASKS, seed=2), TaskStream(TASKS[::-1], seed=1)):
        with pytest.raises(CheckpointError, match="of other tasks or another seed"):
            other.restore(state)


@pytest.mark.parametrize(
    ("ids", "problem"),
    [
        ([], "no tasks to draw from"),
        (["a", "b", "a"], "1 task ids are not unique, e.g. 'a'"),
        (["a@epoch1"], "'a@epoch1' ends like the address of a later epoch"),
    ],
)
def test_tasks_that_cannot_be_told_apart_are_refused(ids, problem):
    with pytest.raises(DataError, match=problem):
        TaskStream([Task(id=name, question="?") for name in ids], seed=0)


def test_the_book_is_one_line_per_event(tmp_path):
    ledger = Ledger(tmp_path / "run" / "ledger.jsonl")
    ledger.drawn(draws(0, 1), step=1)
    ledger.trained(draws(0), step=1)
    ledger.dropped_for("all_failed", draws(1), step=1)
    assert [json.loads(line) for line in (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()] == [
        {"event": "drawn", "step": 1, "draw": 0, "task": "q0"},
        {"event": "drawn", "step": 1, "draw": 1, "task": "q1"},
        {"event": "trained", "step": 1, "draw": 0, "task": "q0"},
        {"event": "dropped", "step": 1, "draw": 1, "task": "q1", "reason": "all_failed"},
    ]
    assert (ledger.num_drawn, ledger.num_trained, ledger.dropped, ledger.pending) == (
        2,
        1,
        {"all_failed": 1},
        (),
    )
    ledger.check(1)


def test_a_draw_that_was_lost_on_the_way_is_named(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.drawn(draws(0, 1, 2), step=4)
    ledger.trained(draws(0), step=4)
    ledger.check(4, in_flight=draws(1, 2))
    with pytest.raises(LedgerError) as error:
        ledger.check(4, in_flight=draws(2, 3))
    assert str(error.value) == (
        "step 4: 3 drawn, 1 trained, 0 dropped and 2 pending, but 2 in flight; lost: q1; unknown: q3"
    )


def test_events_that_cannot_be_are_refused(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.drawn(draws(0, 1), step=1)
    ledger.trained(draws(0), step=1)
    with pytest.raises(LedgerError, match=r"draw 0 \(q0\) cannot be trained: it was already trained or dropped"):
        ledger.trained(draws(0), step=1)
    with pytest.raises(LedgerError, match=r"draw 2 \(q2\) cannot be dropped: it was never drawn"):
        ledger.dropped_for("stale", draws(2), step=1)
    with pytest.raises(LedgerError, match=r"draw 1 \(q1\) was drawn before; the last was 1"):
        ledger.drawn(draws(1), step=2)


def test_a_book_with_fewer_events_than_its_checkpoint_is_refused(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.drawn(draws(0, 1), step=1)
    state = ledger.state()
    ledger.close()
    path.write_text(path.read_text()[:-5])  # the last line is torn
    with pytest.raises(LedgerError, match="has 1 of the checkpoint's 2 events"):
        Ledger(path).restore(state)


def test_a_book_of_another_run_is_refused(tmp_path):
    ledger = Ledger(tmp_path / "a.jsonl")
    ledger.drawn(draws(0, 1), step=1)
    other = Ledger(tmp_path / "b.jsonl")
    other.drawn(draws(0), step=1)
    other.trained(draws(0), step=1)
    other.close()
    with pytest.raises(LedgerError, match="but the checkpoint says"):
        Ledger(tmp_path / "b.jsonl").restore(ledger.state())


def test_a_run_that_starts_over_starts_a_new_book(tmp_path):
    for _ in range(2):
        ledger = Ledger(tmp_path / "ledger.jsonl")
        ledger.drawn(draws(0), step=1)
        ledger.close()
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 1


@given(seed=st.integers(0, 2**32), actions=st.lists(st.sampled_from("dddttxcrk"), max_size=40))
@settings(max_examples=150, deadline=None)
def test_every_draw_is_accounted_for_exactly_once_through_any_crashes(tmp_path_factory, seed, actions):
    """draw, train, drop (x), checkpoint, restore after a crash, or after a crash amid a write (k)."""
    path = tmp_path_factory.mktemp("book") / "ledger.jsonl"
    dice = random.Random(seed)
    ledger, stream = Ledger(path), TaskStream(TASKS, seed=seed)
    waiting: list[Draw] = []
    trained: list[int] = []
    saved = None
    for step, action in enumerate(actions):
        dice.shuffle(waiting)
        some = [waiting.pop() for _ in range(min(len(waiting), dice.randint(0, 3)))] if action in "tx" else []
        if action == "d":
            fresh = stream.draw(dice.randint(0, 4))
            ledger.drawn(fresh, step)
            waiting += fresh
        elif action == "t":
            ledger.trained(some, step)
            trained += [draw.number for draw in some]
        elif action == "x":
            ledger.dropped_for(dice.choice(["stale", "all_failed"]), some, step)
        elif action == "c":
            saved = json.loads(json.dumps([ledger.state(), stream.state(), trained]))
        elif saved is not None:
            ledger.close()
            if action == "k":
                with path.open("ab") as file:
                    file.write(b'{"event": "dra')
            ledger, stream = Ledger(path), TaskStream(TASKS, seed=seed)
            stream.restore(saved[1])
            ledger.restore(saved[0])
            waiting = [stream.at(number) for number in ledger.pending]
            trained = list(saved[2])
        ledger.check(step, waiting)
        drawn = range(stream.state()["next"])
        assert ledger.num_drawn == len(drawn)
        assert ledger.num_trained == len(trained) == len(set(trained))
        assert len(drawn) == ledger.num_trained + sum(ledger.dropped.values()) + len(waiting)
    ledger.state()
    events = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    ends = [event["draw"] for event in events if event["event"] != "drawn"]
    assert len(ends) == len(set(ends))  # nothing ends twice, not even across crashes
    assert sorted(event["draw"] for event in events if event["event"] == "trained") == sorted(trained)
