"""Rewards in processes of their own: what they return, and what they cannot do to the run."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest

from rlkit.errors import RecipeError, RewardError
from rlkit.records import Leaf, Node, RewardTerm, SamplingState, ScoredTree, Task, Tree
from rlkit.rollout.scoring import RewardSpec, Scorer

REWARDS = '''
    import ctypes, math, os, signal, subprocess, sys, time
    import numpy as np
    import neighbour
    from rlkit.reward import Score, per_group

    def length(task, trajectory, *, scale=1.0):
        return scale * len(trajectory.completion)

    def turns(task, trajectory):
        said = [0.0, math.nan, 2.0]
        return Score(value=1, turns=tuple(said[: len(trajectory.turns)]))

    def measuring(task, trajectory):
        return Score(value=1.0, measured={"steps": math.nan if trajectory.leaf.sample_index else 3})

    def parts(task, trajectory):
        return {"a": 1, "b": math.nan if trajectory.leaf.sample_index == 0 else 2}

    @per_group
    def rank(task, trajectories):
        order = sorted(trajectories, key=lambda t: t.completion)
        return [order.index(t) for t in trajectories]

    @per_group
    def short(task, trajectories):
        return [1.0]

    def moody(task, trajectory, *, mood):
        """Something else for each sample index."""
        return mood[trajectory.leaf.sample_index]

    def fragile(task, trajectory, *, flag):
        """Somebody kills its process, once."""
        if trajectory.leaf.sample_index == 1 and not os.path.exists(flag):
            open(flag, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return 1.0

    def odd(task, trajectory):
        return [1.5, np.float32(2), True, "high", None, math.inf, {}, Score(value=1, turns=())][
            trajectory.leaf.sample_index
        ]

    def acting_up(task, trajectory, *, act, ill=1):
        if trajectory.leaf.sample_index == ill:
            ACTS[act]()
        return 1.0

    ACTS = {
        "hang": lambda: time.sleep(60),
        "spin": lambda: exec("while True: pass"),
        "exit": lambda: os._exit(3),
        "leave": lambda: sys.exit("enough"),
        "crash": lambda: ctypes.string_at(0),
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "raise": lambda: 1 / 0,
        "recurse": lambda: (lambda f: f(f))(lambda f: f(f)),
        "print": lambda: print("x" * 30_000_000),
        "read": input,
        "orphan": lambda: (subprocess.Popen(["sleep", "60"]), time.sleep(60)),
        "forged": lambda: os.write(1, b'[{"values": {"": 99}}]\\n'),
    }

    def where(task, trajectory):
        return {"pid": os.getpid(), "torch": "torch" in sys.modules, "neighbour": neighbour.VALUE}
'''


def tree(statuses: str = "ddd", turns: int = 1) -> Tree:
    """One leaf per letter of `statuses` (d, t, f), each with `turns` completions."""
    nodes = [Node(parent=-1, author="prompt", token_ids=np.zeros(1, np.int32), text="who?")]
    leaves = []
    for index, letter in enumerate(statuses):
        for turn in range(turns):
            parent = len(nodes) - 1 if turn else 0
            sampled: dict[str, Any] = {
                "behavior_logprobs": np.zeros(1, np.float32),
                "sampling": SamplingState(),
            }
            ids, text = np.ones(1, np.int32), "x" * (index + 1)
            nodes.append(Node(parent=parent, author="policy", token_ids=ids, text=text, turn=turn, **sampled))
        status = {"d": "done", "t": "truncated", "f": "failed"}[letter]
        leaves.append(Leaf(node=len(nodes) - 1, sample_index=index, status=status))
    return Tree(task=Task(id="q1", question="who?"), nodes=tuple(nodes), leaves=tuple(leaves))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "my_rewards.py").write_text(dedent(REWARDS))
    (folder / "neighbour.py").write_text("VALUE = 42.0\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


def spec(
    folder: Path,
    function: str,
    *,
    name: str = "",
    deadline_s: float = 5.0,
    weight: float = 1.0,
    **settings: Any,
):
    path = f"{folder / 'my_rewards.py'}:{function}"
    return RewardSpec(name=name or function, spec=path, weight=weight, deadline_s=deadline_s, settings=settings)


def score(on: Tree, *specs: RewardSpec, isolate: bool = False) -> ScoredTree:
    scorer = Scorer(specs, isolate=isolate)
    try:
        return asyncio.run(scorer.score(on))
    finally:
        scorer.close()


def values(term: RewardTerm) -> list[float | None]:
    return [None if math.isnan(value) else float(value) for value in term.values]


@pytest.mark.parametrize("isolate", [False, True])
def test_every_kind_of_result_is_the_same_in_and_out_of_process(folder, isolate):
    specs = [
        spec(folder, "length", scale=2.0, weight=0.5),
        spec(folder, "turns"),
        spec(folder, "parts"),
        spec(folder, "rank", weight=0.0),
    ]
    scored = score(tree("dft", turns=3), *specs, isolate=isolate)
    failed = "skipped: rollout failed"
    assert [term.name for term in scored.terms] == ["length", "turns", "parts/a", "parts/b", "rank"]
    length, turns, a, b, rank = scored.terms
    assert values(length) == [6, None, 18]  # 2 * (3 turns of 1 letter), 2 * (3 turns of 3 letters)
    assert length.status == ("ok", failed, "ok")
    # Nodes: the prompt, then three per leaf. The turns say 0, nothing, 2; the failed leaf was not asked.
    nothing = math.nan
    np.testing.assert_array_equal(turns.node_values, [nothing, 0, nothing, 2, *[nothing] * 3, 0, nothing, 2])
    assert length.node_values is None
    assert values(a) == [1, None, 1]
    assert values(b) == [None, None, 2]
    assert b.status == ("failed: returned nan", failed, "ok")
    assert values(rank) == [0, None, 1]  # the group is the leaves that did not fail
    assert scored.valid.tolist() == [False, False, True]
    assert scored.rewards[2] == 0.5 * 18 + 1 + 1 + 2


def test_results_that_are_no_reward_fail_their_own_leaf(folder):
    [term] = score(tree("d" * 8), spec(folder, "odd")).terms
    assert values(term) == [1.5, 2, 1, None, None, None, None, None]
    kinds = "instead of a number, a mapping of numbers or a Score"
    assert term.status[3:] == (
        f"failed: returned str {kinds}",
        f"failed: returned NoneType {kinds}",
        "failed: returned inf",
        "failed: returned an empty mapping",
        "failed: a Score of 0 turns for a trajectory of 1",
    )


@pytest.mark.parametrize("isolate", [False, True])
def test_what_a_score_measures_is_logged_with_weight_0_and_its_silence_is_no_failure(folder, isolate):
    scored = score(tree("ddf"), spec(folder, "measuring", weight=2.0), isolate=isolate)
    value, steps = scored.terms
    assert (value.name, steps.name, steps.weight) == ("measuring", "measuring/steps", 0.0)
    assert values(steps) == [3, None, None]
    assert steps.status == ("ok", "skipped: not measured", "skipped: not measured")
    assert scored.rewards[:2].tolist() == [2.0, 2.0]


def test_a_key_that_only_some_leaves_return_is_missing_on_the_others(folder):
    scored = score(tree(), spec(folder, "moody", mood=[{"a": 1, "b": 2}, {"a": 3}, 4.0]))
    assert [term.name for term in scored.terms] == ["moody", "moody/a", "moody/b"]
    assert [values(term) for term in scored.terms] == [[None, None, 4], [1, 3, None], [2, None, None]]
    assert [term.status[1] for term in scored.terms] == [
        "failed: returned no unnamed value",
        "ok",
        "failed: returned no b",
    ]


def test_a_group_reward_with_too_few_results_fails_for_the_group(folder):
    [term] = score(tree(), spec(folder, "short")).terms
    assert term.status == ("failed: ValueError: 1 results for 3 trajectories",) * 3


def test_a_tree_of_failed_rollouts_is_not_judged(folder):
    scored = score(tree("ff"), spec(folder, "length"), spec(folder, "rank"))
    assert [term.name for term in scored.terms] == ["length", "rank"]
    assert {status for term in scored.terms for status in term.status} == {"skipped: rollout failed"}


@pytest.mark.parametrize(
    ("act", "why"),
    [
        ("hang", "deadline of 0.4 s"),
        ("spin", "deadline of 0.4 s"),
        ("orphan", "deadline of 0.4 s"),
        ("exit", "its process exited (3)"),
        ("crash", "its process died of SIGSEGV"),
        ("kill", "its process died of SIGKILL"),
    ],
)
def test_a_reward_that_ends_its_process_costs_one_leaf_and_the_run_goes_on(folder, act, why):
    scorer = Scorer([spec(folder, "acting_up", name="ill", deadline_s=0.4, act=act), spec(folder, "length")])
    start = time.perf_counter()
    ill, length = asyncio.run(scorer.score(tree())).terms
    assert time.perf_counter() - start < 3
    assert values(ill) == [1, None, 1]
    assert ill.status == ("ok", f"failed: {why}", "ok")
    assert values(length) == [1, 2, 3]
    again = asyncio.run(scorer.score(tree("d"))).terms
    assert [values(term) for term in again] == [[1], [1]]
    scorer.close()


def test_a_process_that_is_killed_from_outside_costs_no_reward(folder, tmp_path):
    [term] = score(tree(), spec(folder, "fragile", flag=str(tmp_path / "killed")), isolate=True).terms
    assert (tmp_path / "killed").exists()
    assert values(term) == [1, 1, 1]
    assert term.status == ("ok", "ok", "ok")


def test_what_a_reward_raises_is_recorded_with_its_words(folder):
    whys = {
        "leave": "SystemExit: enough",
        "raise": "ZeroDivisionError: division by zero",
        "recurse": "RecursionError: maximum recursion depth exceeded",
        "read": "EOFError: EOF when reading a line",
    }
    scored = score(tree(), *(spec(folder, "acting_up", name=act, act=act) for act in whys), isolate=True)
    for term in scored.terms:
        assert term.status == ("ok", f"failed: {whys[term.name]}", "ok")


@pytest.mark.parametrize("act", ["print", "forged"])
def test_whatever_a_reward_prints_is_no_answer(folder, act):
    [term] = score(tree(), spec(folder, "acting_up", act=act), isolate=True).terms
    assert values(term) == [1, 1, 1]


def test_what_a_reward_started_dies_with_it(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLKIT_TEST_MARK", mark := f"orphan of {os.getpid()}")
        scorer = Scorer([spec(folder, "acting_up", deadline_s=0.4, act="orphan", ill=0)])
        asyncio.run(scorer.score(tree("d")))
        assert until_gone(mark)
        scorer.close()


def test_a_reward_process_does_not_outlive_a_run_that_was_killed(folder):
    program = f"""
        import asyncio, os, sys, threading
        sys.path[:0] = {[str(folder), str(Path(__file__).parents[2])]!r}
        from tests.rollout.test_scoring import Scorer, spec, tree
        from pathlib import Path
        scorer = Scorer([spec(Path({str(folder)!r}), "acting_up", deadline_s=60, act="spin", ill=0)])
        threading.Timer(0.3, lambda: os._exit(0)).start()
        asyncio.run(scorer.score(tree("d")))
    """
    mark = f"killed run of {os.getpid()}"
    subprocess.run([sys.executable, "-c", dedent(program)], env=os.environ | {"RLKIT_TEST_MARK": mark}, check=True)
    assert until_gone(mark)


def until_gone(mark: str, patience_s: float = 3.0) -> bool:
    """True as soon as no process carries `mark` in its environment, this one left out."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        alive = 0
        for entry in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                alive += f"RLKIT_TEST_MARK={mark}".encode() in entry.read_bytes()
        if not alive:
            return True
        time.sleep(0.02)
    return False


def test_the_child_knows_the_parents_modules_and_carries_no_torch(folder):
    [neighbour, pid, torch] = sorted(score(tree("d"), spec(folder, "where"), isolate=True).terms, key=lambda t: t.name)
    assert neighbour.values[0] == 42
    assert pid.values[0] != os.getpid()
    assert torch.values[0] == 0


def test_trees_are_judged_side_by_side_in_as_many_processes_as_asked(folder):
    scorer = Scorer(
        [spec(folder, "where"), spec(folder, "acting_up", deadline_s=0.3, act="hang", ill=0)], num_processes=2
    )

    async def both() -> list[ScoredTree]:
        return await asyncio.gather(*(scorer.score(tree("d")) for _ in range(4)))

    pids = {term.values[0] for scored in asyncio.run(both()) for term in scored.terms if term.name == "where/pid"}
    assert len(pids) == 4  # each hang costs a process, and another takes its place
    scorer.close()


def test_a_large_tree_fits_through_the_pipe_while_answers_come_back(folder):
    big = tree("d" * 64, turns=20)
    nodes = (Node(parent=-1, author="prompt", token_ids=np.zeros(500_000, np.int32)), *big.nodes[1:])
    [term] = score(Tree(task=big.task, nodes=nodes, leaves=big.leaves), spec(folder, "length"), isolate=True).terms
    assert values(term) == [20 * (i + 1) for i in range(64)]


@pytest.mark.parametrize("isolate", [False, True])
def test_a_reward_that_cannot_be_imported_stops_the_run_before_it_starts(folder, isolate):
    with pytest.raises(RecipeError, match=r"^rewards\[1\]\.kind: .*has no 'lenght'; did you mean 'length'\?"):
        Scorer([spec(folder, "length"), spec(folder, "lenght")], isolate=isolate)


def test_a_reward_that_kills_its_process_while_imported_stops_the_run_before_it_starts(folder):
    (folder / "bomb.py").write_text("import os, sys\nprint('tick')\nos._exit(9)\n")
    with pytest.raises(RewardError, match=r"did not start: its process exited \(9\); it printed: tick"):
        Scorer([RewardSpec(name="bomb", spec=f"{folder / 'bomb.py'}:reward")])
