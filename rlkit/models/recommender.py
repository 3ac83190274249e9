"""A causal language model whose words are semantic IDs: built for one catalogue, in the transformers format.

Its vocabulary is four control tokens and one token per code; a user's history is a text of nothing else:

    <bos> <a_183><b_70><c_232><d_6> <a_12><b_3><c_250><d_77> ...      what follows is the next item

There is no separator, so one causal pass over a user's sequence trains every position of it. Alternatively the tokens
are added to a pretrained language model (`add_semantic_ids`), which then reads text histories as well.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from rlkit.catalogue.items import CATALOGUE_FILE, SID_TOKEN, Catalogue

__all__ = ["CHAT_TEMPLATE", "add_semantic_ids", "build_recommender", "sid_tokenizer"]

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
"""Ids 0 to 3: padding, start of a history, end of an answer (never needed under a trie), any other word."""
CHAT_TEMPLATE = (
    "{{ '<bos>' }}{% for message in messages %}"
    "{{ message['content'] + ('<eos>' if message['role'] == 'assistant' else '') }}"
    "{% endfor %}"
)
"""Messages one after the other; the answer follows the history without a mark between them."""


def sid_tokenizer(catalogue: Catalogue) -> PreTrainedTokenizerFast:
    """One word per token of a semantic ID, in the order of `Catalogue.tokens`; white space is dropped.

    Other text falls into letters, each unknown, so content cannot write a control token.
    """
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *catalogue.tokens))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(f"{SID_TOKEN}|."), "isolated")]
    )
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def build_recommender(
    folder: Path,
    catalogue: Catalogue,
    *,
    hidden: int = 256,
    layers: int = 4,
    heads: int = 4,
    max_context: int = 512,
    seed: int = 0,
) -> int:
    """Write a random float32 Llama for the catalogue into `folder`; the number of its parameters.

    Embeddings are shared with the output head. The global random state is left alone. Raises `ValueError` for a
    width that the heads do not divide into even parts.
    """
    if hidden % (2 * heads):
        raise ValueError(f"hidden: {hidden} is not a multiple of 2 * heads ({2 * heads})")
    tokenizer = sid_tokenizer(catalogue)
    tokenizer.model_max_length = max_context
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 16 * 16,  # SwiGLU: as many weights as a plain block of 4·hidden
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=max_context,
        tie_word_embeddings=True,
        dtype=torch.float32,
        catalogue=catalogue.fingerprint,
        **ids,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**ids)
    _write(folder, model, tokenizer, catalogue)
    return sum(weight.numel() for weight in model.parameters())


def add_semantic_ids(source: Path, folder: Path, catalogue: Catalogue, *, seed: int = 0) -> int:
    """Write the causal model of `source` with the catalogue's tokens added into `folder`; the number of new tokens.

    They are plain words, not control tokens, so that histories may hold them. Their embeddings are the mean of the
    old ones plus a tenth of their standard deviation of noise: equal rows would learn as one.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(source, local_files_only=True)
    model: Any = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )
    known = len(tokenizer)
    added = tokenizer.add_tokens(list(catalogue.tokens))
    model.resize_token_embeddings(max(len(tokenizer), model.config.vocab_size), mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    tables = {id(table.weight): table.weight for table in (model.get_input_embeddings(), model.get_output_embeddings())}
    with torch.no_grad():
        for table in tables.values():
            old = table[:known]
            noise = torch.randn(len(tokenizer) - known, table.shape[1], generator=generator)
            table[known : len(tokenizer)] = old.mean(0) + 0.1 * old.std(0) * noise
    model.config.catalogue = catalogue.fingerprint
    _write(folder, model, tokenizer, catalogue)
    return int(added)


def _write(folder: Path, model: Any, tokenizer: Any, catalogue: Catalogue) -> None:
    """All or nothing: the folder appears when it is complete. Raises `FileExistsError` if it is there already."""
    if folder.exists():
        raise FileExistsError(f"{folder} exists; name a new folder, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        inside = Path(temporary, "model")
        model.save_pretrained(inside)
        tokenizer.save_pretrained(inside)
        catalogue.write(inside / CATALOGUE_FILE)
        inside.rename(folder)
