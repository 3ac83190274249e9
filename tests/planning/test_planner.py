"""Reference planners against a real server on loopback, and without any."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlkit.data.multihop import Multihop
from rlkit.errors import DataError
from rlkit.judging import Endpoint, JudgeClient
from rlkit.launch.cli import main
from rlkit.launch.plan_references import places_of
from rlkit.planning.direct import DIRECT, read_plan
from rlkit.planning.planner import UNANSWERED, Planner
from rlkit.planning.validation import fault_of
from rlkit.planning.vote import MERGE, common_steps, correct_paths
from rlkit.records import Leaf, Task, Tree
from rlkit.search.references import read_references, reference_of, with_references
from tests.judging.judge_server import JudgeServer, in_turn, raw, says
from tests.rewards.search_paths import P1, searched

TASK = Task(id="q0", question="Where was the father of Ann born?", answers=("Ulm",), data={"dataset": "d"})
GOOD = {
    "correct_reasoning_path": ["1. father of Ann", "2. birthplace of [father]"],
    "optimized_planner": "father first",
}
LEAK = {"correct_reasoning_path": ["father of Ann born in Ulm"]}


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    found = JudgeServer(says(GOOD))
    yield found
    found.close()


def client(server: JudgeServer, judge: Any = DIRECT) -> JudgeClient[Any]:
    return JudgeClient(Endpoint(url=server.url, model="m", retries=0, deadline_s=5.0), judge)


def planned(tmp_path: Path, *tasks: Task, **given: Any) -> tuple[dict[str, int], list[dict[str, Any]]]:
    planner = Planner(file=tmp_path / "refs.jsonl", **given)
    counts = planner.plan(places_of(tasks or [TASK], "train"))
    return dict(counts), [json.loads(line) for line in planner.file.read_text().splitlines()]


# ------------------------------------------------------------------ validation


@pytest.mark.parametrize(
    ("steps", "fault"),
    [
        (["father of Ann", "birthplace of [father]"], ""),
        ([], "it has no steps"),
        (["a1", "b1", "c1", "d1", "e1"], "it has 5 steps, more than 4"),
        (["red fox", "The red fox!"], "it says one step twice"),
        (["is it Ulm"], "step 'is it Ulm' tells the answer"),
        (["Ulmer street"], ""),  # whole words only
        (["<tool_call>x</tool_call>"], "step '<tool_call>x</tool_call>' holds a tag"),
        (["see www.x.org"], "step 'see www.x.org' holds a web address"),
        (["[it]"], "step '[it]' names nothing to search for"),
    ],
)
def test_a_plan_that_would_spoil_a_reward_is_refused(steps: list[str], fault: str) -> None:
    assert fault_of(steps, TASK, 4) == fault


def test_an_answer_that_the_question_names_is_no_leak() -> None:
    assert fault_of(["age of Ulm"], Task(id="t", question="Is Ulm older than Bonn?", answers=("Ulm",)), 4) == ""


def test_a_plan_is_a_list_or_numbered_lines() -> None:
    assert read_plan(GOOD).steps == ("father of Ann", "birthplace of [father]")
    assert read_plan({"correct_reasoning_path": "Step 1: a\n\n2) b"}).steps == ("a", "b")
    assert read_plan({"correct_reasoning_path": ["7 wonders"]}).steps == ("7 wonders",)
    with pytest.raises(ValueError, match="is not a list of queries"):
        read_plan({"correct_reasoning_path": 3})


# ------------------------------------------------------------------ direct


def test_a_model_that_sees_the_answer_plans_and_says_so(tmp_path: Path, server: JudgeServer) -> None:
    counts, [line] = planned(tmp_path, mode="direct", direct=client(server))
    assert counts == {"direct: m": 1}
    assert line == {
        "data_source": "d", "split": "train", "index": 0, "question": TASK.question, "ref_planner": "father first",
        "ref_steps": ["father of Ann", "birthplace of [father]"], "source": "direct: m", "n_calls": 1, "reason": "",
    }  # fmt: skip
    assert "Ulm" in server.requests[0]["messages"][0]["content"]


def test_a_refused_plan_is_asked_for_again_with_the_reason(tmp_path: Path, server: JudgeServer) -> None:
    server.behaviour = in_turn(says(LEAK), says(GOOD))
    _, [line] = planned(tmp_path, mode="direct", direct=client(server))
    assert (line["source"], line["n_calls"]) == ("direct: m", 2)
    assert "tells the answer" in server.requests[1]["messages"][0]["content"]


def test_after_three_refused_plans_a_task_goes_without(tmp_path: Path, server: JudgeServer) -> None:
    server.behaviour = says(LEAK)
    counts, [line] = planned(tmp_path, mode="direct", direct=client(server))
    assert counts == {"no reference": 1} and len(server.requests) == 3
    assert (
        line["ref_steps"] == [] and line["reason"] == "step 'father of Ann born in Ulm' tells the answer; no annotation"
    )


def test_annotation_stands_in_for_a_plan_that_was_refused(tmp_path: Path, server: JudgeServer) -> None:
    server.behaviour = says(LEAK)
    task = Task(id="q", question="Where?", answers=("Ulm",), data={"dataset": "d", "supporting_titles": ["Ann"]})
    counts, [line] = planned(tmp_path, task, mode="direct", direct=client(server))
    assert counts == {"annotation": 1} and line["ref_steps"] == ["[facts about] Ann"]


def test_an_endpoint_that_fails_says_nothing_about_the_task(tmp_path: Path, server: JudgeServer) -> None:
    server.behaviour = raw(b"", 500)
    task = Task(id="q", question="Where?", answers=("Ulm",), data={"dataset": "d", "supporting_titles": ["Ann"]})
    counts, lines = planned(tmp_path, task, mode="direct", direct=client(server))
    assert counts == {UNANSWERED: 1} and lines == []
    server.behaviour = says(GOOD)
    counts, lines = planned(tmp_path, task, mode="direct", direct=client(server))
    assert counts == {"direct: m": 1} and len(lines) == 1


def test_what_the_file_holds_is_not_asked_again_even_after_a_crash(tmp_path: Path, server: JudgeServer) -> None:
    tasks = [Task(id=f"q{n}", question=f"Where is {n}?", answers=("Ulm",), data={"dataset": "d"}) for n in range(5)]
    planned(tmp_path, *tasks[:3], mode="direct", direct=client(server), batch=2)
    file = tmp_path / "refs.jsonl"
    file.write_text(file.read_text()[:-20])  # killed in the middle of the third line
    heard: list[int] = []
    planner = Planner(file=file, mode="direct", direct=client(server))
    assert planner.plan(places_of(tasks, "train"), heard.append) == {"direct: m": 5}
    assert len(server.requests) == 3 + 3 and sum(heard) == 5
    assert [entry.index for entry in read_references(file)] == [0, 1, 2, 3, 4]


def test_a_changed_question_is_planned_anew(tmp_path: Path, server: JudgeServer) -> None:
    planned(tmp_path, mode="direct", direct=client(server))
    other = Task(id="q0", question="Where else?", answers=("Ulm",), data={"dataset": "d"})
    counts, lines = planned(tmp_path, other, mode="direct", direct=client(server))
    assert counts == {"direct: m": 1} and [line["question"] for line in lines] == [TASK.question, "Where else?"]


# ------------------------------------------------------------------ vote


PATHS = [("father of Ann", "Bob birthplace"), ("Bob birthplace", "father of Ann", "weather"), ("who is father of Ann",)]


def test_steps_that_half_of_the_correct_rollouts_took_are_kept_in_their_mean_order() -> None:
    # "father of Ann" at 0, 1, 0: mean 1/3 in three rollouts; "Bob birthplace" at 1, 0: mean 1/2 in two; weather in one.
    assert common_steps(PATHS) == ("father of Ann", "Bob birthplace")
    assert common_steps([]) == ()


def test_words_vote_without_a_model(tmp_path: Path) -> None:
    counts, [line] = planned(tmp_path, mode="vote", paths={"q0": PATHS})
    assert counts == {"vote: words": 1} and line["ref_steps"] == ["father of Ann", "Bob birthplace"]


def test_a_model_merges_the_paths_without_the_answer(tmp_path: Path, server: JudgeServer) -> None:
    counts, _ = planned(tmp_path, mode="vote", merge=client(server, MERGE), paths={"q0": PATHS})
    assert counts == {"vote: m": 1}
    asked = server.requests[0]["messages"][0]["content"]
    assert "father of Ann -> Bob birthplace" in asked and "Ulm" not in asked


def test_without_a_correct_rollout_vote_falls_back_to_direct(tmp_path: Path, server: JudgeServer) -> None:
    counts, _ = planned(tmp_path, mode="vote", direct=client(server), merge=client(server, MERGE))
    assert counts == {"direct: m": 1}


def forest(*trajectories: Any) -> list[Tree]:
    trees = []
    for trajectory in trajectories:
        leaf = Leaf(node=len(trajectory.nodes) - 1, sample_index=0, status="done", answer=trajectory.answer)
        trees.append(Tree(task=TASK, nodes=trajectory.nodes, leaves=(leaf,)))
    return trees


def test_only_rollouts_that_searched_and_were_right_vote() -> None:
    right = searched("a1", "the A1!", "b1", task=TASK)
    wrong = searched("c1", task=TASK, answer="Bonn")
    wordy = searched("d1", task=TASK, answer="It is Ulm")
    guessed = searched(task=TASK)
    trees = forest(right, wrong, wordy, guessed, right)
    assert correct_paths(TASK, trees, P1, k=4) == [("the A1!", "b1")]
    assert len(correct_paths(TASK, trees, P1, k=5)) == 2


# ------------------------------------------------------------------ the file and its readers


def test_references_find_their_task_by_place_and_else_by_question(tmp_path: Path, server: JudgeServer) -> None:
    planned(tmp_path, mode="direct", direct=client(server))
    entries = read_references(tmp_path / "refs.jsonl")
    stranger = Task(id="x", question="Who?", answers=("y",), data={"dataset": "d"})
    before, moved = with_references([stranger, TASK], "train", entries)
    assert "reference" not in before.data
    found = reference_of(moved)
    assert found is not None and found.steps == ("father of Ann", "birthplace of [father]")
    assert (found.source, found.planner) == ("direct: m", "father first")


@pytest.mark.parametrize("line", ["{", "[]", '{"data_source": "d"}', '{"data_source":"d","split":"s","index":0,'
                                  '"question":"q","ref_steps":"x"}'])  # fmt: skip
def test_a_broken_line_names_file_and_line(tmp_path: Path, line: str) -> None:
    file = tmp_path / "refs.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(DataError, match=r"refs.jsonl:1: is no reference"):
        read_references(file)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_references(tmp_path / "none.jsonl")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    import gzip

    folder = tmp_path / "data" / "hotpotqa"
    folder.mkdir(parents=True)
    rows = [
        {"id": f"h{n}", "question": f"Where is {n}?", "answers": ["Ulm"], "supporting_titles": [f"Title {n}"]}
        for n in range(3)
    ]
    with gzip.open(folder / "train.jsonl.gz", "wt") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)
    return folder.parent


def test_the_command_plans_and_the_task_source_reads(
    tmp_path: Path, data: Path, server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "refs.jsonl"
    given = ["plan-references", "search_p1_cpu", f"task.path={data}", "--out", str(out)]
    assert main([*given, "--limit", "2"]) == 0
    assert "annotation                       2" in capsys.readouterr().out
    assert main([*given, "--mode", "direct", "--url", server.url, "--model", "m"]) == 0
    assert "direct: m                        1" in capsys.readouterr().out  # the two others are kept
    tasks = Multihop(Multihop.Config(path=str(data), references=str(out))).tasks("train")
    assert [task.data["reference"]["source"] for task in tasks] == ["annotation", "annotation", "direct: m"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode", "direct"], "--mode direct asks a language model: name it with --url and --model"),
        (["--mode", "vote"], "--mode vote reads rollouts: name a run with --rollouts"),
        (["--url", "http://localhost:1/v1"], "--url and --model belong together"),
        (["--limit", "0"], "--limit: 0 is below 1"),
        (["--url", "ftp://x", "--model", "m"], "endpoint.url: 'ftp://x' is no address"),
    ],
)
def test_wrong_arguments_are_refused(
    tmp_path: Path, data: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "refs.jsonl")
    assert main(["plan-references", "search_p1_cpu", f"task.path={data}", "--out", out, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_command_votes_with_the_stored_rollouts_of_a_run(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rlkit.records import ScoredTree
    from rlkit.store import write_trees

    task = Task(id="h0", question="Where is 0?", answers=("Ulm",))
    [tree] = forest(searched("red fox", "fox den", task=task))
    stored = ScoredTree(tree=Tree(task=task, nodes=tree.nodes, leaves=tree.leaves), terms=())
    run = tmp_path / "run"
    (run / "rollouts").mkdir(parents=True)
    write_trees(run / "rollouts" / "step_000001.jsonl.gz", [stored])
    (run / "recipe.yaml").write_text(
        "base: search_p1_cpu\nenv: {tags: {think: reasoning, search: tool_call, information: tool_response}}\n"
        f"task: {{path: {data}}}\nrewards: [{{kind: exact_match}}]\n"
    )
    out = tmp_path / "refs.jsonl"
    given = ["plan-references", "search_p1_cpu", f"task.path={data}", "--out", str(out), "--mode", "vote"]
    assert main([*given, "--rollouts", str(run)]) == 0
    assert [entry.source for entry in read_references(out)] == ["vote: words", "annotation", "annotation"]
    assert read_references(out)[0].ref_steps == ("red fox", "fox den")
