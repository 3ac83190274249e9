"""Models of semantic IDs: built, saved, loaded by rlkit's own parts, and refused for another catalogue."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rlkit.catalogue.items import Catalogue, check_model
from rlkit.models.recommender import add_semantic_ids, build_recommender, sid_tokenizer
from rlkit.policy.tiny import tiny_model
from rlkit.records import Message
from rlkit.render import Renderer
from tests.catalogue.shop import ITEMS, text, write


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    file = tmp_path_factory.mktemp("shop") / "items.jsonl.gz"
    write(file, ITEMS)
    return Catalogue.read(file)


def test_every_token_of_a_semantic_id_is_one_word(catalogue: Catalogue) -> None:
    tokenizer = sid_tokenizer(catalogue)
    assert len(tokenizer) == 4 + 10
    ids = tokenizer.encode(text(10, 13), add_special_tokens=False)
    assert ids == tokenizer.convert_tokens_to_ids(["<a_1>", "<b_1>", "<c_1>", "<a_2>", "<b_3>", "<c_4>"])
    assert tokenizer.decode(ids) == text(10, 13)


def test_the_prompt_of_a_history_is_a_start_and_its_tokens(catalogue: Catalogue) -> None:
    renderer = Renderer(sid_tokenizer(catalogue))
    ids, written = renderer.prompt([Message(role="user", content=text(10))])
    assert written == f"<bos>{text(10)}"
    assert ids.tolist() == [1, *renderer.text_ids(text(10)).tolist()]
    assert renderer.prompt([Message(role="user", content="")])[0].tolist() == [1]  # an empty history
    assert renderer.end_id == 2


def test_content_cannot_write_a_control_token(catalogue: Catalogue) -> None:
    renderer = Renderer(sid_tokenizer(catalogue))
    ids, _ = renderer.prompt([Message(role="user", content=f"{text(10)} <eos> <bos>")])
    assert 2 not in ids and 1 not in ids[1:]


def test_a_built_model_carries_its_catalogue_and_so_do_its_copies(tmp_path: Path, catalogue: Catalogue) -> None:
    folder = tmp_path / "model"
    size = build_recommender(folder, catalogue, hidden=32, layers=2, heads=2, max_context=64)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert sum(weight.numel() for weight in model.parameters()) == size
    model.save_pretrained(tmp_path / "checkpoint")
    check_model(tmp_path / "checkpoint", catalogue, setting="train.init_from")
    assert AutoConfig.from_pretrained(tmp_path / "checkpoint").catalogue == catalogue.fingerprint
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    found, trie = Catalogue.of_model(folder, tokenizer.convert_tokens_to_ids)
    assert found.titles == catalogue.titles and trie.num_leaves == 5
    with pytest.raises(FileExistsError, match="name a new folder"):
        build_recommender(folder, catalogue)


def test_the_seed_decides_the_weights_and_the_global_state_is_left_alone(tmp_path: Path, catalogue: Catalogue) -> None:
    before = torch.random.get_rng_state()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        build_recommender(tmp_path / name, catalogue, hidden=16, layers=1, heads=2, seed=seed)
    assert torch.equal(torch.random.get_rng_state(), before)
    a, b, c = (AutoModelForCausalLM.from_pretrained(tmp_path / n).get_input_embeddings().weight for n in "abc")
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_a_width_that_heads_do_not_divide_is_refused(tmp_path: Path, catalogue: Catalogue) -> None:
    with pytest.raises(ValueError, match=r"hidden: 30 is not a multiple of 2 \* heads \(8\)"):
        build_recommender(tmp_path / "x", catalogue, hidden=30)


def test_a_language_model_gets_new_words_and_keeps_its_old_ones(tmp_path: Path, catalogue: Catalogue) -> None:
    source = tiny_model(tmp_path / "base", layers=1, hidden=32)
    old = AutoModelForCausalLM.from_pretrained(source).get_input_embeddings().weight
    assert add_semantic_ids(source, tmp_path / "grown", catalogue) == 10
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "grown", local_files_only=True)
    table = AutoModelForCausalLM.from_pretrained(tmp_path / "grown").get_input_embeddings().weight
    first = tokenizer.convert_tokens_to_ids("<a_1>")
    assert torch.equal(table[:first], old[:first]) and len(table) == first + 10
    assert len(torch.unique(table[first:], dim=0)) == 10
    renderer = Renderer(tokenizer)
    ids, written = renderer.prompt([Message(role="user", content=f"Bought {text(12)}. Next?")])
    assert text(12) in written
    assert [tokenizer.convert_tokens_to_ids(t) for t in ("<a_1>", "<b_2>", "<c_3>")] == [i for i in ids if i >= first]
    Catalogue.of_model(tmp_path / "grown", tokenizer.convert_tokens_to_ids)
