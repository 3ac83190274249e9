"""The graph follows what a run retrieves: which versions there were, and that a killed run sees the same ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlkit.config import load
from rlkit.errors import DataError, LedgerError, RecipeError
from rlkit.launch.run import evaluate_recipe, run_recipe
from rlkit.policy.tiny import tiny_model
from rlkit.records import ScoredTree, Task
from rlkit.retrieval.heat import CitationHeat, read_log
from rlkit.retrieval.hybrid import GraphSettings, Hybrid
from rlkit.retriever import Passage, Refreshable
from rlkit.rollout.ledger import Draw, Ledger, TaskStream
from rlkit.rollout.loop import RolloutSettings
from rlkit.train import Parts, train
from tests.retrieval.test_hybrid import SHELF, hybrid
from tests.test_train import parts, tree_of

ROOT = Path(__file__).parents[2]
HALF = GraphSettings(share=0.5)  # ceil(0.5 · 6) = 3 passages
TASKS = [Task(id=page.id, question=page.title, answers=("!",)) for page in SHELF]


class Searching:
    """A collector that asks about every task, and dies in the middle of one step."""

    def __init__(self, retriever: Hybrid, dies_at: int = -1) -> None:
        self.retriever, self.calls, self.dies_at = retriever, 0, dies_at

    def collect(self, tasks: Sequence[Task | Draw], settings: RolloutSettings) -> list[ScoredTree]:
        self.calls += 1
        plain = [task.task if isinstance(task, Draw) else task for task in tasks]
        for task in plain:
            assert self.retriever.search_now([task.question], 1)[0].status == "ok"
            if self.calls == self.dies_at:
                raise KeyboardInterrupt
        return [tree_of(task, [1.0, 0.0]) for task in plain]


def run(folder: Path, *, dies_at: int = -1, shelf: Sequence[Passage] = SHELF, **settings: Any) -> Parts:
    retriever = hybrid(folder.parent, shelf, log=str(folder / "log.jsonl"), graph=HALF, refresh_every=1, **settings)
    overrides = ("train.steps=5", "train.checkpoint_every=2", "train.eval_every=0", "rollout.groups_per_step=1")
    made = parts(
        folder,
        *overrides,
        "retriever.kind=hybrid",
        "retriever.refresh_every=1",
        "retriever.log=unused",
        rollouts=Searching(retriever, dies_at),
        stream=TaskStream(TASKS, 0),
        held_out=TASKS[-1:],
        index=retriever,
    )
    train(made)
    return made


def indexes(folder: Path) -> list[tuple[int, str]]:
    events = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    return [(event["step"], event["index"]) for event in events if event["event"] == "index"]


def test_every_refresh_builds_the_graph_of_what_training_used_so_far(tmp_path: Path) -> None:
    done = run(tmp_path / "run")
    assert isinstance(done.index, Refreshable)
    order = [draw.task.id for draw in TaskStream(TASKS, 0).draw(5)]
    names = {page.id: page.title for page in SHELF}
    # Before step 5 four questions were asked once each; equal heat is decided by id, three fit.
    hottest = sorted(order[:4])[:3]
    assert done.index.graph is not None  # type: ignore[attr-defined]
    assert set(done.index.graph.names) == {names[page] for page in hottest}  # type: ignore[attr-defined]
    steps, versions = zip(*indexes(tmp_path / "run"), strict=True)
    assert steps[:4] == (1, 2, 3, 4) and len(set(versions)) == len(versions)
    assert done.ledger.index == versions[-1] == done.index.index_version()


def test_metrics_say_how_much_of_the_graph_outlived_a_refresh(tmp_path: Path) -> None:
    run(tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    found = [row["metrics"]["index/passages"] for row in rows if "index/passages" in row["metrics"]]
    assert found == [1.0, 2.0, 3.0, 3.0]  # before steps 2 to 5: as many as were asked about, at most three
    kept = [row["metrics"]["index/kept"] for row in rows if "index/kept" in row["metrics"]]
    assert kept[:3] == pytest.approx([1.0, 1 / 2, 2 / 3])  # at first all passages were in it


def test_questions_of_the_evaluation_are_logged_and_never_shape_the_graph(tmp_path: Path) -> None:
    run(tmp_path / "run")
    lines = [line for line in read_log(tmp_path / "run/log.jsonl") if "query" in line]
    assert {line["query"] for line in lines if line.get("phase") == "eval"} == {TASKS[-1].question}
    heat = CitationHeat()
    heat.read(line for line in lines if line.get("phase") == "eval")
    assert heat.top(1.0, [page.id for page in SHELF]) == []


@pytest.mark.parametrize("dies_at", [2, 5])  # the first collect is the evaluation: in steps 1 and 4
def test_a_run_that_was_killed_searches_the_same_indexes(tmp_path: Path, dies_at: int) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", dies_at=dies_at)
    again = run(tmp_path / "run")
    assert (tmp_path / "run/ledger.jsonl").read_text() == (tmp_path / "whole/ledger.jsonl").read_text()
    assert again.index.index_version() == whole.index.index_version()  # type: ignore[union-attr]
    books = [[line for line in read_log(tmp_path / name / "log.jsonl") if "query" in line] for name in ("run", "whole")]
    assert books[0] == books[1]


def test_a_corpus_that_changed_after_the_checkpoint_is_refused_with_a_switch(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", dies_at=5)
    changed = [*SHELF[:-1], Passage(id="island", title="Lonely island", text="A bridge was built.")]
    with pytest.raises(DataError, match=r"the passages changed since.*allow_changed_corpus=true"):
        run(tmp_path / "run", shelf=changed)
    (tmp_path / "run/log.jsonl").unlink()  # also where no log says so
    with pytest.raises(DataError, match=r"has \d+ of the checkpoint's \d+ bytes"):
        run(tmp_path / "run", shelf=changed)


def test_the_switch_goes_on_over_the_changed_corpus(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", dies_at=5)
    changed = [*SHELF[:-1], Passage(id="island", title="Lonely island", text="A bridge was built.")]
    done = run(tmp_path / "run", shelf=changed, allow_changed_corpus=True)
    assert done.ledger.num_trained == 5


def test_a_checkpoint_knows_its_corpus_without_a_log(tmp_path: Path) -> None:
    state = hybrid(tmp_path).index_state()
    hybrid(tmp_path).restore_index(json.loads(json.dumps(state)))
    changed = hybrid(tmp_path, SHELF[:-1])
    with pytest.raises(DataError, match=r"searched index \w+, this one is \w+: the passages changed since"):
        changed.restore_index(state)
    hybrid(tmp_path, SHELF[:-1], allow_changed_corpus=True).restore_index(state)


def test_the_switch_is_no_part_of_the_recipes_fingerprint() -> None:
    assert repr(Hybrid.Config(allow_changed_corpus=True)) == repr(Hybrid.Config())


def test_an_evaluation_opens_the_index_of_a_checkpoint_and_leaves_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    first = hybrid(tmp_path, log=str(log), graph=HALF, refresh_every=1)
    first.search_now(["conversion pixel"], 1)
    report = first.refresh()
    assert (report.num_passages, report.num_kept) == (1, 1)
    state = first.index_state()
    first.search_now(["editorial review"], 1)
    size = log.stat().st_size
    other = hybrid(tmp_path, log=str(log), graph=HALF, refresh_every=1)
    assert other.version != report.version
    other.restore_index(state, resume=False)
    assert other.version == report.version and log.stat().st_size >= size


def test_rlkit_eval_searches_the_index_of_the_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [
        f"model.path={tiny_model(tmp_path / 'model')}",
        "engine.deterministic=false",  # other tests of this process may have multiplied before
        f"out={tmp_path / 'run'}",
        "env.kind=qa_retrieval",
        "retriever.kind=hybrid",
        "retriever.refresh_every=1",
        f"retriever.log={tmp_path / 'run/retrieval.jsonl'}",
        f"retriever.cache_dir={tmp_path / 'indexes'}",
        "train.eval_every=0",
        "log.tensorboard=false",
    ]
    recipe = load(ROOT / "recipes/tiny.yaml", settings)
    assert run_recipe(recipe) == 0
    (_, first), (_, second) = indexes(tmp_path / "run")
    log = tmp_path / "run/retrieval.jsonl"
    before = len(read_log(log))
    more = load(ROOT / "recipes/tiny.yaml", [*settings, "eval.tasks=4"])
    assert evaluate_recipe(more, tmp_path / "run") == 0
    fresh = [line for line in read_log(log)[before:] if "query" in line]
    assert [(line["version"], line["phase"]) for line in fresh] == [(second, "eval")] * 2  # two were known
    assert first != second and "exact_match" in capsys.readouterr().out
    elsewhere = [f"out={tmp_path / 'other'}", f"retriever.log={tmp_path / 'other/log.jsonl'}"]
    moved = load(ROOT / "recipes/tiny.yaml", [*settings, *elsewhere])
    assert evaluate_recipe(moved, tmp_path / "run") == 0  # the checkpoint holds what it needs
    assert {line["version"] for line in read_log(tmp_path / "other/log.jsonl") if "query" in line} == {second}


def test_a_line_that_a_killed_run_left_unfinished_is_cut(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    hybrid(tmp_path, log=str(log)).search_now(["bids"], 1)
    log.write_text(log.read_text() + '{"query": "torn')
    hybrid(tmp_path, log=str(log)).search_now(["review"], 1)
    assert [line["query"] for line in read_log(log) if "query" in line] == ["bids", "review"]


def test_versions_of_the_index_are_events_of_the_ledger_and_survive_a_restore(tmp_path: Path) -> None:
    draw = TaskStream(TASKS, 0).draw(1)
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.searched("v1", 1)
    ledger.searched("v1", 2)  # no news
    ledger.drawn(draw, 2)
    ledger.searched("v2", 3)
    state = ledger.state()
    assert (state["events"], state["index"]) == (3, "v2")
    ledger.searched("v3", 4)
    ledger.close()
    again = Ledger(tmp_path / "ledger.jsonl")
    again.restore(state)
    assert again.index == "v2" and [step for step, _ in indexes(tmp_path)] == [1, 3]
    with pytest.raises(LedgerError, match="but the checkpoint says"):
        Ledger(tmp_path / "ledger.jsonl").restore(state | {"index": "v1"})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["retriever.refresh_every=2"], "log: null, but refresh_every=2 builds the graph from the log"),
        (
            ["retriever.refresh_every=2", "retriever.log=x", "retriever.channels=[bm25]"],
            r"channels: \['bm25'\] without graph",
        ),
        (["retriever.refresh_every=-1"], "refresh_every: -1 is below 0"),
        (
            ["retriever.refresh_every=2", "retriever.log=x", "rollout.max_staleness=1"],
            "refresh_every: 2 with rollouts that go on across steps.*use rollout.max_staleness=0",
        ),
    ],
)
def test_settings_that_cannot_follow_a_run_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(ROOT / "recipes/tiny.yaml", ["retriever.kind=hybrid", *overrides])
