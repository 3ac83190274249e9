"""Every reward of the plug-in table passes the gate: a new one is tried as soon as it has its line there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlkit.catalogue.items import Catalogue
from rlkit.catalogue.vectors import write_vectors
from rlkit.errors import RecipeError
from rlkit.gate import GateReport, check_rewards
from rlkit.plugins import TABLES, config_of, load_object
from rlkit.records import Task
from rlkit.reward import contract_of
from rlkit.rollout.judge import RewardSpec
from rlkit.settings import build
from rlkit.transcript import Written, transcript
from tests.catalogue.shop import ITEMS, text, write

NEEDS_A_FILE = {"sid_prefix": "reads vectors of a catalogue that a recipe has to name"}
"""Rewards that are tried on a file and on groups of their own, below."""
KINDS = [kind for kind in TABLES["rewards"] if kind not in NEEDS_A_FILE]


def spec_of(kind: str) -> RewardSpec:
    function = load_object(TABLES["rewards"][kind])
    config = config_of(function)
    try:
        settings: Any = build(config, dict(contract_of(function).settings), kind)
    except RecipeError as error:
        pytest.fail(f"{error}: give the reward's Contract settings to try it with")
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(config)}
    deadline_s = 20.0  # on a machine that does other things as well; a hang would still be found
    return RewardSpec(name=kind, spec=TABLES["rewards"][kind], settings=values, deadline_s=deadline_s)


@pytest.fixture(scope="module")
def reports() -> Callable[[str], GateReport]:
    found = {report.name: report for report in check_rewards([spec_of(kind) for kind in KINDS])}
    return found.__getitem__


@pytest.mark.parametrize("kind", KINDS)
def test_a_shipped_reward_passes(reports: Callable[[str], GateReport], kind: str) -> None:
    report = reports(kind)
    assert not report.refuted, str(report)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shipped_reward_declares_its_bounds(reports: Callable[[str], GateReport], kind: str) -> None:
    verdicts = {finding.check: finding.verdict for finding in reports(kind).findings}
    assert verdicts["bounds"] in ("passed", "exempt"), "say @contract(bounds=...)"


def test_rewards_that_speak_of_turns_pass_while_they_do() -> None:
    specs = [spec_of(kind) for kind in ("search_p1", "path_centric")]
    speaking = [replace(spec, settings={**spec.settings, "turn_credit": True}) for spec in specs]
    for report in check_rewards(speaking):
        assert not report.refuted, str(report)
        assert {finding.check: finding.verdict for finding in report.findings}["hindsight"] == "passed"


def test_the_rewards_left_out_are_in_the_table_and_do_need_a_setting() -> None:
    for kind in NEEDS_A_FILE:
        with pytest.raises(RecipeError, match="missing"):
            build(config_of(load_object(TABLES["rewards"][kind])), {}, kind)


def test_the_reward_on_prefixes_of_semantic_ids_passes_on_a_catalogue_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "items.jsonl.gz", ITEMS)
    vectors = np.random.default_rng(0).normal(size=(len(ITEMS), 4))
    file = tmp_path / "vectors.safetensors"
    write_vectors(file, Catalogue.read(tmp_path / "items.jsonl.gz"), vectors, made_by="chance")
    task = Task(id="shop", question="thing 10, thing 11", answers=(text(12),))
    said = [text(10), text(12), text(13), text(10), "<a_9><b_9><c_9>", None, ""]
    group = [Written(parts=(("policy", answer or "hm"),), answer=answer) for answer in said]
    spec = RewardSpec(
        name="sid_prefix",
        spec=TABLES["rewards"]["sid_prefix"],
        settings={"vectors": str(file), "weights": [0.3, 0.5, 1.0]},
        deadline_s=20.0,
    )
    (report,) = check_rewards([spec], stored=[transcript(task, *group), transcript(task, *group[-3:])])
    assert not report.refuted, str(report)
    verdicts = {finding.check: finding.verdict for finding in report.findings}
    assert verdicts["finite"] == verdicts["bounds"] == verdicts["group_order"] == "passed"


def test_the_gate_tries_rewards_of_another_domain_on_their_own_probes(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from rlkit.errors import RewardError\n"
        "from rlkit.reward import contract\n"
        "from rlkit.records import Task\n"
        "from rlkit.transcript import Written, transcript\n\n"
        "def probes():\n"
        "    task = Task(id='sum', question='2 + 2', data={'result': 4})\n"
        "    said = [Written(parts=(('policy', str(n)),), answer=str(n)) for n in (3, 4, 5)]\n"
        "    return [transcript(task, *said)]\n\n"
        "@contract(bounds=(0, 0.5), probes=probes)\n"
        "def is_sum(task, trajectory):\n"
        "    if 'result' not in task.data:\n"
        "        raise RewardError('no result')\n"
        "    return float(trajectory.answer == str(task.data['result']))\n"
    )
    (report,) = check_rewards([RewardSpec(name="is_sum", spec=f"{tmp_path / 'own.py'}:is_sum")])
    (finding,) = report.refuted
    assert finding.note == "1 outside the declared [0, 0.5]"  # its own probes alone could show that
    assert "task sum, answer '4'" in finding.example
