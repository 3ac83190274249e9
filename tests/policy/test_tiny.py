"""The tiny model and its tokenizer are complete enough to stand in for a real one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from rlkit.policy.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


@given(st.text())
def test_every_text_survives_the_tokenizer(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_every_byte_is_a_token(tokenizer) -> None:
    text = bytes(range(256)).decode("latin-1") + "漢字🌳"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_messages_render_as_chatml_with_one_id_per_marker(tokenizer) -> None:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids.count(1) == 2 and ids.count(2) == 1
    assert tokenizer.eos_token_id == 2


def test_the_vocabulary_follows_the_texts() -> None:
    tokenizer = tiny_tokenizer(["zebra zebra zebra"])
    assert len(tokenizer.encode("zebra zebra", add_special_tokens=False)) == 2


def test_a_seed_names_the_weights_and_the_global_generator_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    folders = [tiny_model(tmp_path / str(i), layers=1, hidden=32, seed=seed) for i, seed in enumerate((0, 0, 1))]
    assert torch.equal(torch.rand(1), expected)
    heads = [AutoModelForCausalLM.from_pretrained(folder).lm_head.weight for folder in folders]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_a_width_that_does_not_split_into_heads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hidden: 40"):
        tiny_model(tmp_path, hidden=40)
