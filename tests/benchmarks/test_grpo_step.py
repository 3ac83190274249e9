"""The benchmarks measure what they say; no timings."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.contest import Job, Meter, Outcome
from benchmarks.grpo_step import SHAPES, Shape, differences, markdown
from benchmarks.mfu import flops, random_tree
from benchmarks.rlkit_side import RlkitSide, reward
from rlkit.algorithms import grpo
from rlkit.data.packing import pack


def tiny_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model with a tokenizer, in the layout of transformers."""
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config()).save_pretrained(tmp_path)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(50)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2").save_pretrained(tmp_path)
    return tmp_path


def test_bounds_are_those_of_the_design() -> None:
    # 8 · 442 / (410 + 256); 16 · 516 / (512 + 64)
    assert SHAPES["first"].bound == pytest.approx(5.309, abs=1e-3)
    assert SHAPES["semantic-ids"].bound == pytest.approx(14.333, abs=1e-3)
    assert SHAPES["first"].flat_tokens == 2 * 8 * 442


def test_a_step_samples_trains_and_records(folder: Path) -> None:
    side = RlkitSide(folder, deterministic=False)
    (record := folder / "record").mkdir()
    outcome = side.step(Job(prompts=[[3, 4, 5], [6, 7]], group=4, new_tokens=3, record=str(record)))
    assert [[len(ids) for ids in group] for group in outcome.completions] == [[3] * 4] * 2
    assert outcome.rewards[1][0] == reward(outcome.completions[1][0])
    before, after = load_file(folder / "model.safetensors"), load_file(record / "weights.safetensors")
    gradient = load_file(record / "gradient.safetensors")
    assert before.keys() == after.keys() == gradient.keys()
    # AdamW's first step is lr · g / (|g| + eps): it moves every weight with a gradient, against it.
    name = "model.layers.0.mlp.up_proj.weight"
    clear = np.abs(gradient[name]) > 1e-4
    assert clear.any()
    assert (np.sign(before[name] - after[name])[clear] == np.sign(gradient[name])[clear]).all()
    assert side.engine.version == side.learner.version == 1
    apart = differences(folder, record, record)
    assert set(apart.values()) == {0.0}


def test_differences_are_relative_to_the_peer(tmp_path: Path) -> None:
    for side, value in (("ours", 1.5), ("theirs", 2.0)):
        (tmp_path / side).mkdir()
        for kind in ("gradient", "weights"):
            arrays = {"a": np.array([value], np.float32), "b": np.array([4.0], np.float32)}
            save_file(arrays, tmp_path / side / f"{kind}.safetensors")
    save_file({"a": np.ones(1, np.float32), "b": np.ones(1, np.float32)}, tmp_path / "model.safetensors")
    apart = differences(tmp_path, tmp_path / "ours", tmp_path / "theirs")
    assert apart["weights"] == pytest.approx(0.5 / np.hypot(2, 4))
    assert apart["weights_worst"] == pytest.approx(0.5 / 2)
    assert apart["update_worst"] == pytest.approx(0.5 / 1)  # the change is 0.5 here, 1 there


def test_the_page_shows_ratios_of_rounds() -> None:
    ours = Outcome(generation=(1.0, 1.0), learner=(2.0, 2.0), sync=(1.0, 1.0), peak_bytes=2**30)
    theirs = Outcome(generation=(6.0, 6.0), learner=(10.0, 8.0), peak_bytes=2**31)
    steps = {name: [asdict(o) | {"step": o.step}] for name, o in (("rlkit", ours), ("trl", theirs))}
    shape = SHAPES["first"]
    apart = dict.fromkeys(["gradient", "gradient_worst", "weights", "weights_worst", "update", "update_worst"], 1e-6)
    found = {"shape": asdict(shape), "peer": "as-it-is", "steps": steps, "apart": apart, "bound": shape.bound}
    found |= {"unique_tokens": shape.unique_tokens, "flat_tokens": shape.flat_tokens}
    page = markdown({"command": "c", "model": "m", "machine": {"cores": 2}, "shapes": [found]})
    assert (
        "| 410/32/8 | 5.31 | 1 | 4.0 / 16.0 | **4.00** | 1.0 / 6.0 | **6.00** | 2.0 / 10.0 | **5.00** | 94% |" in page
    )


def test_time_off_the_clock_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([(0.0, 0.0), (1.0, 1.0), (9.0, 5.0), (10.0, 6.0)])  # start, stopped, going on, lap
    monkeypatch.setattr("benchmarks.contest._now", lambda: next(clock))
    meter = Meter()
    meter.start()
    with meter.stopped():
        pass
    assert meter.lap() == (2.0, 2.0)


def test_flops_follow_the_formula() -> None:
    model = LlamaForCausalLM(tiny_config())
    shape = Shape(prompt=5, completion=3, group=2, prompts=1)
    tree = random_tree(shape, np.random.default_rng(0))
    rows = pack(grpo.ALGORITHM.credit([tree], grpo.GrpoConfig(), None), 64).rows
    # Inputs: 5 + 2 · 2 (last tokens are targets only). Pairs: 15 in the prompt, 2 · (2 · 5 + 3) in the completions.
    layer = 16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 24
    assert flops(model, rows) == {"trunk": 6 * 2 * layer * 9, "head": 6 * 50 * 16 * 6, "attention": 12 * 41 * 16 * 2}
