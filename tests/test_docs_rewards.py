"""What docs/rewards.md shows works: its rewards pass the gate, and its judge is asked through a real server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlkit.config import load
from rlkit.gate import check_rewards
from rlkit.gate.checks import __doc__ as checks
from rlkit.launch.cli import main
from rlkit.records import ScoredTree, Task
from rlkit.rollout.build import reward_specs
from rlkit.rollout.scoring import Scorer
from rlkit.transcript import Written, transcript
from tests.judging.judge_server import Behaviour, JudgeServer, in_turn, says

PAGE = (Path(__file__).parents[1] / "docs" / "rewards.md").read_text(encoding="utf-8")
TASK = Task(id="t", question="Who sings?", answers=("Eddie Argos",))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for text in re.findall(r"```(?:python|yaml)\n(.*?)```", PAGE, flags=re.DOTALL):
        (tmp_path / text.splitlines()[0].removeprefix("# ")).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def servers() -> Iterator[list[JudgeServer]]:
    started: list[JudgeServer] = []
    yield started
    for server in started:
        server.close()


def judged(folder: Path, server: JudgeServer, *overrides: str, allowed: bool = True) -> ScoredTree:
    """A group of three answers, two of them equal, under the page's recipe."""
    host = server.url.removeprefix("http://").removesuffix("/v1")
    changes = [f"rewards.1.judge.url={server.url}", f"network.allow=[{host if allowed else ''}]", *overrides]
    recipe = load(folder / "tone.yaml", changes).recipe
    said = [Written(parts=(("policy", text),), answer=text) for text in ("Hello.", "Hello.", "Yo")]
    scorer = Scorer(reward_specs(recipe), allow=recipe.network.allow)
    try:
        return asyncio.run(scorer.score(transcript(TASK, *said)))
    finally:
        scorer.close()


def serve(servers: list[JudgeServer], behaviour: Behaviour) -> JudgeServer:
    servers.append(JudgeServer(behaviour))
    return servers[-1]


def test_the_pages_first_reward_passes_the_gate(folder: Path) -> None:
    assert main(["check-reward", "brevity.py:right_and_brief", "limit=8"]) == 0


def test_the_page_names_every_check() -> None:
    assert checks is not None
    listed = re.findall(r"^    (?:always|declared) +(.*)$", checks, flags=re.MULTILINE)
    for check in " ".join(listed).split():
        assert f"`{check}`" in PAGE, check


def test_the_pages_judge_gives_values_and_counters(folder: Path, servers: list[JudgeServer]) -> None:
    server = serve(servers, in_turn(says({"tone": 7}), says({"tone": 99})))
    terms = {term.name: term for term in judged(folder, server).terms}
    assert sorted(terms["tone"].values) == [0.7, 0.7, 1.0] or sorted(terms["tone"].values) == [0.7, 1.0, 1.0]
    assert len(server.requests) == 2  # equal answers are asked once
    assert terms["tone/judge_requests"].weight == 0
    assert terms["tone/judge_requests"].values.sum() == 2
    assert terms["tone/judge_tokens"].values.sum() == 220
    again = {term.name: term for term in judged(folder, server).terms}
    assert again["tone/judge_cached"].values.tolist() == [1, 1, 1] and len(server.requests) == 2


def test_a_judge_that_fails_is_a_status_or_the_fallback_that_was_asked_for(
    folder: Path, servers: list[JudgeServer]
) -> None:
    server = serve(servers, says("", status=400))
    term = next(term for term in judged(folder, server).terms if term.name == "tone")
    assert term.status == ("failed: RewardError: judge tone: HTTP status 400",) * 3
    scored = judged(folder, server, "rewards.1.on_failure=length")
    terms = {term.name: term for term in scored.terms}
    assert terms["tone"].values.tolist() == [1, 1, 1]
    assert terms["tone/judge_failed"].values.tolist() == [1, 1, 1]  # and it is counted


def test_a_judge_on_a_host_that_the_recipe_does_not_allow_is_not_reached(
    folder: Path, servers: list[JudgeServer]
) -> None:
    server = serve(servers, says({"tone": 7}))
    term = next(t for t in judged(folder, server, allowed=False).terms if t.name == "tone")
    assert all("network.allow: 127.0.0.1:" in status for status in term.status)
    assert not server.requests


def test_the_gate_finds_that_the_pages_fallback_tells_nothing_apart(folder: Path, servers: list[JudgeServer]) -> None:
    server = serve(servers, says({"tone": 7}))
    host = server.url.removeprefix("http://").removesuffix("/v1")
    changes = [f"rewards.1.judge.url={server.url}", "rewards.1.judge.cache=''"]
    for fallback, refused in (("fail", []), ("length", ["timeout"])):
        recipe = load(folder / "tone.yaml", [*changes, f"rewards.1.on_failure={fallback}"]).recipe
        _, report = check_rewards(reward_specs(recipe), allow=[host])
        assert [finding.check for finding in report.refuted] == refused, str(report)
