"""What the recorder writes, what survives a crash and a resume, and what the live view shows."""

from __future__ import annotations

import io
import json
import math
import sys
import types
import warnings
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rlkit.live import LiveView, sparkline
from rlkit.metrics import UndocumentedMetric
from rlkit.recorder import Recorder, blank_secrets, read_metrics, rollout_files
from rlkit.records import Leaf, Node, ScoredTree, Task, Tree
from rlkit.store import read_trees


def tree(name: str) -> ScoredTree:
    node = Node(parent=-1, author="prompt", token_ids=np.array([1, 2], dtype=np.int32))
    leaf = Leaf(node=0, sample_index=0, status="failed", reason="engine")
    return ScoredTree(tree=Tree(task=Task(id=name, question="?"), nodes=(node,), leaves=(leaf,)), terms=())


def test_a_logged_step_is_a_line_that_can_be_read_back(tmp_path):
    with Recorder(tmp_path, live=False) as recorder:
        recorder.log(1, {"loss": np.float32(0.5), "grad_norm": math.nan, "entropy": math.inf})
        recorder.log(1, {"reward/em/mean": 1}, phase="eval")
    train, held_out = read_metrics(tmp_path)
    assert (train.step, train.phase, held_out.phase) == (1, "train", "eval")
    assert train.metrics["loss"] == 0.5
    assert math.isnan(train.metrics["grad_norm"])
    assert held_out.metrics == {"reward/em/mean": 1.0}
    first = (tmp_path / "metrics.jsonl").read_text().splitlines()[0]
    assert json.loads(first, parse_constant=pytest.fail)["metrics"]["entropy"] is None  # strict JSON


def test_a_run_that_never_logged_has_no_lines(tmp_path):
    assert read_metrics(tmp_path) == []


def test_a_torn_last_line_is_left_out_and_does_not_damage_the_next(tmp_path):
    with Recorder(tmp_path, live=False) as recorder:
        recorder.log(1, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "phase": "tr')
    assert [line.step for line in read_metrics(tmp_path)] == [1]
    with Recorder(tmp_path, live=False) as recorder:
        recorder.resume(1)
        recorder.log(2, {"loss": 2.0})
    assert [line.step for line in read_metrics(tmp_path)] == [1, 2]


def test_resume_forgets_numbers_and_rollouts_after_the_checkpoint(tmp_path):
    with Recorder(tmp_path, live=False) as recorder:
        for step in range(1, 5):
            recorder.log(step, {"loss": float(step)})
            recorder.trees(step, [tree("a")])
            recorder.trees(step, [tree("a")], phase="eval")
    with Recorder(tmp_path, live=False) as recorder:
        recorder.resume(2)
        recorder.log(3, {"loss": 33.0})
    assert [(line.step, line.metrics["loss"]) for line in read_metrics(tmp_path)] == [
        (1, 1.0),
        (2, 2.0),
        (3, 33.0),
    ]
    assert list(rollout_files(tmp_path)) == list(rollout_files(tmp_path, "eval")) == [1, 2]


def test_a_step_keeps_evenly_spaced_trees(tmp_path):
    with Recorder(tmp_path, live=False, trees_per_step=3) as recorder:
        recorder.trees(12, [tree(str(index)) for index in range(9)])
        recorder.trees(13, [])
    assert [path.name for path in rollout_files(tmp_path).values()] == ["step_000012.jsonl.gz"]
    assert [stored.tree.task.id for stored in read_trees(rollout_files(tmp_path)[12])] == ["0", "4", "8"]


def test_an_undocumented_name_warns_once_and_is_still_logged(tmp_path):
    with Recorder(tmp_path, live=False) as recorder:
        with pytest.warns(UndocumentedMetric, match="did you mean 'grad_norm'"):
            recorder.log(1, {"grad_nrm": 1.0})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            recorder.log(2, {"grad_nrm": 1.0, "custom/mine": 2.0})
    assert len(read_metrics(tmp_path)) == 2


def test_the_header_keeps_the_first_start_and_blanks_secrets(tmp_path):
    for _ in range(2):
        with Recorder(tmp_path, live=False) as recorder:
            recorder.header(name="demo", seed=7, recipe="judge: {api_key: sk-1, model: m}\n", note="http://u:p@h/x")
    about = json.loads((tmp_path / "run.json").read_text())
    assert (about["name"], about["seed"], about["note"]) == ("demo", 7, "http://***@h/x")
    assert about["started"] <= about["resumed"][0]
    assert len(about["resumed"]) == 1
    assert (tmp_path / "recipe.yaml").read_text() == 'judge: {api_key: "***", model: m}\n'


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("api_key: sk-1 2", 'api_key: "***"'),
        ("{hf_token: abc, eos_token: z}", '{hf_token: "***", eos_token: z}'),
        ('"password": "a, b"', '"password": "***"'),
        ("WANDB_API_KEY=xyz", 'WANDB_API_KEY="***"'),
        ("max_completion_tokens: 12", "max_completion_tokens: 12"),
    ],
)
def test_secrets_are_blanked_and_settings_are_not(text, safe):
    assert blank_secrets(text) == safe


def test_tensorboard_gets_the_numbers_under_their_phase(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Recorder(tmp_path, live=False, tensorboard=True) as recorder:
        recorder.log(3, {"loss": 0.25})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(3, 0.25)]


def test_wandb_keeps_one_run_per_directory(tmp_path, monkeypatch):
    calls: list[Any] = []

    class FakeRun:
        def define_metric(self, *args: Any, **kwargs: Any) -> None: ...

        def log(self, row: dict[str, float]) -> None:
            calls.append(row)

        def finish(self) -> None:
            calls.append("finished")

    def init(**settings: Any) -> FakeRun:
        calls.append(settings)
        return FakeRun()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for step in (1, 2):
        with Recorder(tmp_path, live=False, wandb="offline", project="p") as recorder:
            recorder.log(step, {"loss": 1.0})
    assert (calls[0]["mode"], calls[0]["project"]) == ("offline", "p")
    assert calls[0]["id"] == calls[3]["id"]
    assert calls[1:3] == [{"step": 1, "train/loss": 1.0}, "finished"]


def test_without_a_terminal_every_step_is_one_plain_line():
    out, now = io.StringIO(), iter(range(0, 1000, 30))
    console = Console(file=out, force_terminal=False, width=40)
    view = LiveView(num_steps=10, console=console, clock=lambda: next(now))
    view.log(1, "train", {"reward/mean": 0.25})
    metrics = {
        "reward/mean": 0.5,
        "rollout/completion_tokens": 212.4,
        "tokens/unique": 10_240,
        "tokens/flat": 51_200,
        "timing/rollout_s": 3.14,
        "timing/learn_s": 5,
    }
    view.log(2, "train", metrics)
    view.log(2, "train", {"timing/checkpoint_s": 0.5})  # no line of its own
    view.log(2, "eval", {"reward/em/mean": 0.4, "reward/em/low": 0.3, "reward/em/high": 0.5, "reward/mean": 0.4})
    view.close()
    assert out.getvalue().splitlines() == [
        "step 1/10  reward 0.25",
        "step 2/10  reward 0.5  tokens 212  10.2k unique for 51.2k flat (5.0x)  rollout 3.1s learn 5.0s  eta 4m 00s",
        "eval 2/10  em 0.4 [0.3, 0.5]",
    ]


def test_in_a_terminal_a_table_shows_trends_and_the_time_left():
    out, now = io.StringIO(), [0.0]
    console = Console(file=out, force_terminal=True, width=100)
    view = LiveView(name="demo", num_steps=4, console=console, clock=lambda: now[0])
    for step, reward in ((1, 0.0), (2, 0.5), (3, 1.0)):
        now[0] += 10
        view.log(step, "train", {"reward/mean": reward})
    view.close()
    assert "▁▅█" in out.getvalue()
    assert "step 3 of 4" in out.getvalue()
    assert "30s so far, 10s left" in out.getvalue()


def test_sparkline_scales_to_its_values_and_leaves_gaps():
    assert sparkline([0, 1, math.nan, 2]) == "▁▅ █"
    assert sparkline([3, 3]) == "▅▅"
    assert sparkline([math.nan]) == " "
    assert len(sparkline(range(100), width=10)) == 10
