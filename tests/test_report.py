"""The report says what a run did, survives what a run can leave behind, and runs nothing a rollout wrote."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shutil
import subprocess
import warnings
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rlkit import report
from rlkit.metrics import UndocumentedMetric, credit_metrics, finalise, held_out_metrics, rollout_metrics
from rlkit.recorder import Recorder
from rlkit.records import (
    CreditedTree,
    CreditPath,
    Leaf,
    Node,
    RewardTerm,
    SamplingState,
    ScoredTree,
    Task,
    Tree,
)
from rlkit.report import write_report
from rlkit.report.numbers import MAX_POINTS, Curve, ledger, read_curves, sections, timing
from rlkit.report.rollouts import MAX_NODE_TOKENS, MAX_TREES

# A small world of two-hop questions: question, the searches that help, gold answer, a tempting wrong one.
WORLD = (
    (
        "In which country was the composer of the opera Halka born?",
        ("composer of the opera Halka", "Stanisław Moniuszko birthplace"),
        "Belarus",
        "Poland",
    ),
    (
        "Which river flows through the birthplace of Johannes Kepler?",
        ("Johannes Kepler birthplace", "river through Weil der Stadt"),
        "Würm",
        "Rhine",
    ),
    (
        "Who directed the film that won the first Palme d'Or?",
        ("first Palme d'Or winning film", "Marty 1955 film director"),
        "Delbert Mann",
        "William Wyler",
    ),
)
PROMPT = (
    "<|im_start|>system\nAnswer the question. You may search: write <search>query</search> and read what"
    " comes back between <information> tags. Finish with <answer>...</answer>.<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
PASSAGE = (
    '\n<information>\n[1] "{}": The archive keeps an article under this title; it was revised in 1998 and'
    ' names people, places and dates.\n[2] "{} (disambiguation)": several entries share the name.\n'
    "</information>\n"
)
RECIPE = """task: {kind: two_hop, split: train}
env: {kind: agentic_search, max_searches: 3}
rewards:
- {kind: exact_match, weight: 1.0}
- {kind: judge, weight: 0.2, api_key: sk-very-secret}
algorithm: {kind: grpo}
"""


class Words:
    """A toy tokenizer: words with the space before them, and marks."""

    def __init__(self) -> None:
        self.known: list[str] = []

    def encode(self, text: str) -> NDArray[np.int32]:
        words = re.findall(r"<\|\w+\|>|</?\w+>| ?\w+|\n|.", text)
        self.known += [word for word in dict.fromkeys(words) if word not in self.known]
        return np.array([self.known.index(word) for word in words], dtype=np.int32)

    def decode(self, ids: Sequence[int]) -> list[str]:
        return [self.known[index] for index in ids]


def policy_node(parent: int, text: str, turn: int, version: int, words: Words, surprise: Any) -> Node:
    ids = words.encode(text)
    return Node(
        parent=parent,
        author="policy",
        token_ids=ids,
        text=text,
        turn=turn,
        behavior_logprobs=-surprise(len(ids)).astype(np.float32),
        policy_version=version,
        sampling=SamplingState(),
    )


def rollout(index: int, skill: float, version: int, rng: np.random.Generator, words: Words) -> ScoredTree:
    """Four attempts that share a first search, then branch; `skill` is the chance to answer well."""
    question, searches, right, wrong = WORLD[index % len(WORLD)]
    nodes: list[Node] = []

    def say(parent: int, text: str, turn: int = 0) -> int:
        surprise = 0.9 - 0.6 * skill
        nodes.append(policy_node(parent, text, turn, version, words, lambda n: rng.exponential(surprise, n)))
        return len(nodes) - 1

    def hear(parent: int, text: str, turn: int = 0) -> int:
        author: Any = "prompt" if parent < 0 else "environment"
        nodes.append(Node(parent=parent, author=author, token_ids=words.encode(text), text=text, turn=turn))
        return len(nodes) - 1

    def answer(parent: int, turn: int) -> tuple[int, str | None]:
        given = right if rng.random() < skill else wrong
        if rng.random() < 0.12 * (1 - skill):
            return say(parent, f"\nI think that it could be {given}, but first I", turn), None
        return say(parent, f"\nThat settles it. <answer>{given}</answer><|im_end|>", turn), given

    root = hear(-1, PROMPT.format(question))
    first = say(root, f"I should look this up. <search>{searches[0]}</search>")
    seen = hear(first, PASSAGE.format(*[searches[0].title()] * 2))
    second = say(seen, f"\nNow the second step. <search>{searches[1]}</search>", 1)
    found = hear(second, PASSAGE.format(*[searches[1].title()] * 2), 1)
    ends = [*((*answer(found, 2), 2.0) for _ in range(2)), (*answer(seen, 1), 1.0), (*answer(root, 0), 0.0)]
    broken = 2 if rng.random() < 0.25 else None
    leaves = tuple(
        Leaf(
            node=node,
            sample_index=sample,
            status="failed" if sample == broken else "truncated" if given is None else "done",
            reason="retriever: deadline of 2 s" if sample == broken else "max_tokens" if given is None else "",
            answer=given,
            signals={"num_searches": searched},
        )
        for sample, (node, given, searched) in enumerate(ends)
    )
    task = Task(id=f"hop-{index}", question=question, answers=(right,))
    return ScoredTree(tree=Tree(task=task, nodes=tuple(nodes), leaves=leaves), terms=terms(leaves, right, rng))


def terms(leaves: Sequence[Leaf], right: str, rng: np.random.Generator) -> tuple[RewardTerm, ...]:
    """An exact match, and a judge that is sometimes too slow."""
    match, judge, spoken = [], [], []
    for leaf in leaves:
        lost, late = leaf.status == "failed", rng.random() < 0.04
        value = 0.3 + 0.5 * (leaf.answer == right) + 0.2 * rng.random()
        match.append(math.nan if lost else float(leaf.answer == right))
        judge.append(math.nan if late or lost else value)
        spoken.append("skipped: failed" if lost else "failed: deadline of 5 s" if late else "ok")
    matched = tuple("skipped: failed" if math.isnan(value) else "ok" for value in match)
    return (
        RewardTerm(name="exact_match", weight=1.0, values=np.array(match), status=matched),
        RewardTerm(name="judge", weight=0.2, values=np.array(judge), status=tuple(spoken)),
    )


def credited(scored: ScoredTree) -> CreditedTree:
    """Group-relative advantages, mean over the sequence."""
    rewards = scored.rewards
    spread = np.nanstd(rewards) if scored.valid.any() else 0.0
    paths = []
    for index in np.flatnonzero(scored.valid):
        tokens = scored.tree.policy_tokens(int(index))
        advantage = (rewards[index] - np.nanmean(rewards)) / (spread + 1e-6)
        paths.append(
            CreditPath(
                leaf=int(index),
                tokens=tokens,
                advantages=np.full(len(tokens), advantage),
                weights=np.full(len(tokens), 1 / len(tokens) / len(rewards)),
            )
        )
    return CreditedTree(scored=scored, paths=tuple(paths))


def make_run(run_dir: Path, *, num_steps: int = 40, eval_every: int = 10, trees_every: int = 5) -> Path:
    """A run as the trainer would leave it: it learns a little, with the failures of real life."""
    rng, words = np.random.default_rng(0), Words()
    with Recorder(run_dir, live=False, decode=words.decode) as recorder:
        recorder.header(name="search_two_hop", seed=7, recipe=RECIPE)
        for step in range(num_steps + 1):
            skill = 0.25 + 0.5 * (1 - math.exp(-step / (0.4 * num_steps + 1)))
            if eval_every and step % eval_every == 0:
                held_out = [rollout(index, skill, step, rng, words) for index in range(16)]
                numbers = held_out_metrics(held_out, learner_version=step)
                recorder.log(step, numbers | {"timing/eval_s": 6.0}, "eval")
                recorder.trees(step, held_out, "eval")
            if step:
                version = step - 1 - int(rng.integers(2))
                trees = [credited(rollout(index, skill, version, rng, words)) for index in range(3)]
                pairs = rollout_metrics([tree.scored for tree in trees], learner_version=step - 1)
                recorder.log(step, finalise(pairs | credit_metrics(trees)) | learner_numbers(step, rng))
                if step % trees_every == 0 or step == 1:
                    recorder.trees(step, trees)
    return run_dir


def learner_numbers(step: int, rng: np.random.Generator) -> dict[str, float]:
    seconds = {"rollout": 4 + rng.random(), "reward": 0.6, "learn": 2.5 + rng.random(), "sync": 0.3}
    return {
        "loss": float(rng.normal(0, 0.02)),
        "grad_norm": math.nan if step == 13 else float(0.4 + rng.exponential(0.3)),
        "lr": 1e-6 * min(step / 10, 1),
        "kl/behavior": float(2e-4 + 1e-4 * rng.random()),
        "entropy": 1.4 * math.exp(-step / 90),
        "clip_frac": float(0.02 * rng.random()),
        "ratio/deviation": float(0.01 * rng.random()),
        "importance": 1.0,
        "memory/peak_mib": 2100.0 + step,
        "ledger/drawn": 3.0 * step + 4,
        "ledger/trained": 3.0 * step - step // 10,
        "ledger/dropped": float(step // 10),
        "ledger/pending": 4.0,
        "dropped/too stale": float(step // 10),
        **{f"timing/{name}_s": value for name, value in seconds.items()},
        "timing/step_s": sum(seconds.values()) + 0.4,
    }


class Page(HTMLParser):
    """What a browser would make of a page: its script elements, and everything it would fetch."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.scripts: list[tuple[str | None, str]] = []
        self.fetched: list[str] = []
        self.policy = ""
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "script":
            self.scripts.append((named.get("type"), ""))
        self.fetched += [str(named[key]) for key in ("src", "href", "srcset") if key in named]
        if named.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(named["content"])

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script":
            kind, text = self.scripts[-1]
            self.scripts[-1] = (kind, text + data.removesuffix("\n") if text else data)

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.scripts[0][1], parse_constant=pytest.fail)
        return found


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UndocumentedMetric)  # the synthetic run logs documented names only
        return make_run(tmp_path_factory.mktemp("run"))


def test_the_report_is_one_file_that_fetches_nothing_and_runs_only_its_own_script(run_dir):
    page = Page(write_report(run_dir))
    assert [kind for kind, _ in page.scripts] == ["application/json", None]
    assert page.fetched == ["#content"]
    script = page.html.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page.policy


def test_results_go_from_the_first_to_the_last_evaluation_with_intervals(run_dir):
    found = Page(write_report(run_dir)).data["results"]
    assert found["held_out"]
    assert [row["label"] for row in found["rows"]] == ["exact match", "judge", "total reward"]
    first, last = found["rows"][0]["start"], found["rows"][0]["end"]
    assert (first["step"], last["step"], last["n"]) == (0, 40, 16)
    assert first["low"] <= first["value"] <= first["high"] < last["high"]


def test_every_logged_name_is_in_a_chart_or_has_a_section_of_its_own(run_dir):
    curves = read_curves(run_dir, [])
    drawn = {chart["name"] for section in sections(curves) for chart in section["charts"]}
    partners = {"reward/best", "reward/exact_match/best", "reward/judge/best", "staleness/max", "tokens/flat"}
    partners |= {"rollout/truncated", "rollout/failed", "reward/exact_match/failed"}  # the last never failed
    own = {name for name in curves["train"] if name.startswith(("timing/", "ledger/", "dropped/"))}
    assert set(curves["train"]) - own - partners == drawn - {"reward/n"}


def test_the_bars_of_a_step_add_up_to_the_whole_step(run_dir):
    time = timing(read_curves(run_dir, []))
    phases = {phase["name"]: phase["seconds"] for phase in time["phases"]}
    # `timing/step_s` of the synthetic run leaves 0.4 s unclaimed; evaluations are timed beside it.
    assert time["steps"] == list(range(41))
    assert phases["other"] == pytest.approx([0.0] + [0.4] * 40)
    assert (phases["eval"][0], phases["eval"][9], phases["eval"][10]) == (6.0, 0.0, 6.0)


def test_failures_say_how_often_when_worst_and_why(run_dir):
    rows = {row["what"]: row for row in Page(write_report(run_dir)).data["failures"]}
    assert rows["rollout failed"]["why"].startswith("retriever: deadline of 2 s (")
    assert rows["reward judge failed"]["why"].startswith("deadline of 5 s (")
    assert rows["reward exact_match failed"]["share"] == 0
    assert rows["train grad_norm not finite"]["why"] == "1 of 40 values, first at step 13"


def test_a_ledger_that_does_not_balance_says_by_how_much():
    books = {"drawn": 10.0, "trained": 6.0, "dropped": 1.0, "pending": 2.0}
    found = ledger({f"ledger/{name}": Curve([1], [value]) for name, value in books.items()})
    assert found is not None
    assert found["missing"] == 1
    assert ledger({}) is None


def test_a_tree_keeps_its_credit_and_its_shared_prefix(run_dir):
    shown = Page(write_report(run_dir)).data["rollouts"]["groups"]
    groups = {group["label"]: group["trees"] for group in shown}
    tree = groups["step 40"][0]
    assert tree["unique"] < tree["flat"]
    policy = [node for node in tree["nodes"] if node["author"] == "policy"]
    assert all(len(node["ids"]) == len(node["texts"]) == len(node["plus"]) == node["size"] for node in policy)
    assert any(value for node in policy for value in node["plus"])
    assert all(node["plus"] is None for node in tree["nodes"] if node["author"] != "policy")
    assert groups["held out, step 40"][0]["nodes"][1]["plus"] is None  # never credited


def test_secrets_of_the_recipe_are_not_shown(run_dir):
    page = Page(write_report(run_dir))
    assert "sk-very-secret" not in page.html
    assert '"***"' in page.data["about"]["recipe"]


HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">{{SCRIPT}}"


def hostile_run(run_dir: Path) -> Path:
    """Every text that a run can carry tries to become markup."""
    prompt = Node(parent=-1, author="prompt", token_ids=np.array([1], dtype=np.int32), text=HOSTILE)
    node = policy_node(0, "x", 0, 1, Words(), np.ones)
    leaf = Leaf(node=1, sample_index=0, status="done", reason=HOSTILE, answer=HOSTILE, signals={HOSTILE: 1.0})
    term = RewardTerm(name=HOSTILE, weight=1.0, values=np.ones(1), status=("ok",))
    task = Task(id=HOSTILE, question=HOSTILE, answers=(HOSTILE,))
    tree = ScoredTree(tree=Tree(task=task, nodes=(prompt, node), leaves=(leaf,)), terms=(term,))
    with Recorder(run_dir, live=False, decode=lambda ids: [HOSTILE] * len(ids)) as recorder:
        recorder.header(name=HOSTILE, seed=0, recipe=HOSTILE, note=HOSTILE)
        with pytest.warns(UndocumentedMetric):
            recorder.log(1, {HOSTILE: 1.0, "reward/mean": 1.0})
        recorder.trees(1, [tree])
    return run_dir


def test_text_of_a_rollout_never_becomes_markup(tmp_path):
    page = Page(write_report(hostile_run(tmp_path)))
    assert len(page.scripts) == 2
    assert "<img" not in page.html
    assert page.html.count("onerror=") == page.scripts[0][1].count("onerror=")  # as JSON text only
    assert page.data["rollouts"]["groups"][0]["trees"][0]["nodes"][1]["texts"] == [HOSTILE]
    dangerous = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|srcdoc"
    assert not re.search(dangerous, page.scripts[1][1])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_draws_a_hostile_run_and_executes_nothing_of_it(tmp_path):
    path = write_report(hostile_run(tmp_path))
    flags = ("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        *flags,
        "--disable-component-update",
        "--disable-sync",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", "--dump-dom"]
    dom = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=60, check=True).stdout
    assert "<title>owned" not in dom
    assert 'class="outline"' in dom  # it was drawn to the end
    assert "<img" not in dom


def test_an_empty_run_gives_a_page_that_says_so(tmp_path):
    data = Page(write_report(tmp_path)).data
    assert data["about"]["name"] == tmp_path.name
    assert [note.split(":")[0] for note in data["notes"]] == [
        "No training step was logged.",
        "run.json is missing or unreadable",
    ]


def test_a_run_of_one_step_without_evaluation_shows_the_training_reward(tmp_path):
    make_run(tmp_path, num_steps=1, eval_every=0)
    data = Page(write_report(tmp_path)).data
    assert not data["results"]["held_out"]
    assert all(row["start"] == row["end"] for row in data["results"]["rows"])
    assert any("No held-out evaluation" in note for note in data["notes"])


def test_damaged_rollouts_are_left_out_with_a_note(tmp_path):
    make_run(tmp_path, num_steps=5, eval_every=0)
    (tmp_path / "rollouts" / "step_000005.jsonl.gz").write_bytes(b"torn")
    data = Page(write_report(tmp_path)).data
    assert [group["label"] for group in data["rollouts"]["groups"]] == ["step 1"]
    assert any(note.startswith("Rollouts of step_000005.jsonl.gz are left out") for note in data["notes"])


def test_a_large_run_is_cut_to_a_budget_and_says_so(tmp_path):
    make_run(tmp_path, num_steps=60, eval_every=0, trees_every=2)
    found = Page(write_report(tmp_path)).data["rollouts"]
    labels = [group["label"] for group in found["groups"]]
    assert sum(len(group["trees"]) for group in found["groups"]) == MAX_TREES
    assert (labels[0], labels[-1]) == ("step 1", "step 60")
    assert found["note"] == f"To stay small, the page holds {MAX_TREES} of the 93 trees that were read."


def test_a_long_node_is_cut_and_keeps_its_true_size(tmp_path):
    prompt = Node(parent=-1, author="prompt", token_ids=np.zeros(MAX_NODE_TOKENS + 7, dtype=np.int32))
    tree = ScoredTree(tree=Tree(task=Task(id="t", question="?"), nodes=(prompt,), leaves=()), terms=())
    with Recorder(tmp_path, live=False) as recorder:
        recorder.trees(1, [tree])
    node = Page(write_report(tmp_path)).data["rollouts"]["groups"][0]["trees"][0]["nodes"][0]
    assert (len(node["ids"]), node["size"]) == (MAX_NODE_TOKENS, MAX_NODE_TOKENS + 7)


def test_a_long_curve_is_thinned_without_losing_its_spikes(tmp_path):
    losses = dict.fromkeys(range(5000), 0.0) | {99: None, 1234: 9.0}
    lines = [{"step": step, "phase": "train", "time": 0.0, "metrics": {"loss": loss}} for step, loss in losses.items()]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    series = sections(read_curves(tmp_path, []))[0]["charts"][0]["series"][0]
    assert len(series["steps"]) == len(series["values"]) <= MAX_POINTS
    assert (series["steps"][0], series["steps"][-1], max(series["values"])) == (0, 4999, 9.0)


def test_the_assets_lie_beside_the_package():
    assets = Path(report.__file__).parent / "assets"
    assert {path.suffix for path in assets.iterdir()} == {".html", ".css", ".js"}
