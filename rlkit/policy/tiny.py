"""A small random model with a working tokenizer, made offline in under a second: for tests and demos."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

__all__ = ["CHAT_TEMPLATE", "tiny_model", "tiny_tokenizer"]

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML."""

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Ids 0, 1, 2: padding, start of a message, end of a message (ends a completion)."""

TEXTS = (
    "system user assistant question answer Who wrote the book that the film is based on?",
    "<search> query </search> <information> passage </information> <answer> Paris </answer> <think> </think>",
    "In which year was the author born? 0 1 2 3 4 5 6 7 8 9 She was born in the city of London in 1984.",
)


def tiny_model(
    path: str | Path,
    *,
    vocab_from: Iterable[str] | None = None,
    layers: int = 2,
    hidden: int = 64,
    seed: int = 0,
) -> Path:
    """Write a random float32 Llama and its tokenizer into the folder `path`, which is returned.

    `vocab_from` are texts to learn the vocabulary from, see `tiny_tokenizer`; `hidden` is a multiple of 16.
    Two heads share a key/value head, so grouped attention is exercised. The global random state is left
    alone.
    """
    if hidden % 16:
        raise ValueError(f"hidden: {hidden} is not a multiple of 16")
    tokenizer = tiny_tokenizer(vocab_from)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        dtype=torch.float32,
        **ids,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return Path(path)


def tiny_tokenizer(texts: Iterable[str] | None = None, *, vocab_size: int = 384) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with ChatML: all 256 bytes, special tokens, merges learned from `texts`.

    Every text survives encoding and decoding; ids below `len(SPECIAL)` are special. The vocabulary is smaller
    than `vocab_size` where the texts have no more pairs.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS if texts is None else texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[0],
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
