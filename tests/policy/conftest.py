"""A tiny model on disk, and engines on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlkit.policy.hf import HfEngine
from rlkit.policy.tiny import tiny_model

MakeEngine = Callable[..., HfEngine]


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tokenizer(model_dir: Path):
    return AutoTokenizer.from_pretrained(model_dir, local_files_only=True)


@pytest.fixture(scope="session")
def exact_model(model_dir: Path) -> torch.nn.Module:
    """The same weights in float64, run as transformers runs them."""
    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float64, local_files_only=True)


@pytest.fixture
def make_engine(model_dir: Path) -> MakeEngine:
    """`make_engine(slots=2, eos_ids=...)`: settings of the config, or options of the constructor.

    Not deterministic: other tests may have fixed MKL's mode already; test_bit_equality has its own process.
    """

    def make(*, slots: int = 8, prefill_chunk: int = 64, eos_ids: Sequence[int] = (), **options: object) -> HfEngine:
        config = HfEngine.Config(slots=slots, prefill_chunk=prefill_chunk, deterministic=False, device="cpu")
        return HfEngine.from_pretrained(config, model_dir, seed=3, eos_ids=eos_ids, **options)

    return make
