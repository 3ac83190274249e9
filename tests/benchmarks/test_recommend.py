"""The recommenders' benchmark: the beam is exact where it is wide enough, and every number is worked by hand."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.recommend import Ranking, by_scores, main, measures, popularity, semantic_ids, summary
from benchmarks.sasrec import SasRecSettings, fit, scores
from benchmarks.sid_beam import rank_leaves
from rlkit.catalogue.items import Catalogue
from rlkit.catalogue.trie import ABSENT, Trie
from rlkit.data.sequences import Sequences
from rlkit.errors import CheckpointError
from rlkit.models.recommender import build_recommender
from rlkit.policy.base import GrowRequest, Sampling
from rlkit.policy.trie_engine import TrieEngine
from tests.catalogue.shop import ITEMS, write_shop


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Sequences:
    root = write_shop(tmp_path_factory.mktemp("data"))
    return Sequences(Sequences.Config(path=str(root), dataset="shop"))


@pytest.fixture(scope="module")
def folder(source: Sequences, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "model"
    build_recommender(path, source.catalogue, hidden=32, layers=2, heads=2, max_context=64)
    return path


def enumerated(model: torch.nn.Module, prompt: list[int], trie: Trie, *, full: bool) -> dict[int, float]:
    """Leaf -> log-probability, one plain forward per prefix."""
    found = {}
    for leaf in range(trie.first_leaf, trie.num_nodes):
        total, node = 0.0, 0
        for token in trie.path(np.array([leaf]))[0].tolist():
            ids = [*prompt, *trie.path(np.array([node]))[0].tolist()]
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1].double()
            _, children = trie.children(np.array([node]))
            kept = logits if full else logits[trie.token[children]]
            total += float(logits[token] - kept.logsumexp(0))
            node = int(trie.child(np.array([node]), np.array([token]))[0])
        found[leaf] = total
    return found


@pytest.mark.parametrize("normalise", ["trie", "vocabulary"])
def test_a_wide_beam_ranks_the_whole_catalogue_exactly(folder: Path, normalise: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    _, trie = Catalogue.of_model(folder, tokenizer.convert_tokens_to_ids)
    prompts = [np.array([1]), np.array([1, 4, 6, 9, 5, 8, 12]), np.array([1, 4, 6, 10])]  # an empty history among them
    leaves, found = rank_leaves(model, prompts, trie, width=8, batch=2, normalise=normalise)  # type: ignore[arg-type]
    for prompt, ranked, likely in zip(prompts, leaves, found, strict=True):
        truth = enumerated(model, prompt.tolist(), trie, full=normalise == "vocabulary")
        best = sorted(truth, key=lambda leaf: -truth[leaf])
        assert ranked.tolist() == [*best, ABSENT, ABSENT, ABSENT]  # five leaves, and never one twice
        assert likely[:5] == pytest.approx([truth[leaf] for leaf in best], abs=1e-4)
    if normalise == "trie":
        assert np.exp(found[:, :5]).sum(1) == pytest.approx(np.ones(3), abs=1e-4)


def test_a_narrow_beam_may_lose_the_best_but_never_leaves_the_trie(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    _, trie = Catalogue.of_model(folder, AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids)
    leaves, _ = rank_leaves(model, [np.array([1, 4])], trie, width=1)
    assert leaves.shape == (1, 1) and trie.depth[leaves[0, 0]] == 3


def test_a_model_is_measured_only_on_its_own_catalogue(source: Sequences, folder: Path, tmp_path: Path) -> None:
    given = Namespace(dtype="float32", beam=8, batch=4, normalise="trie", ties="expected")
    found = semantic_ids(source, source.cases("test"), folder, folder, given)
    assert (found.size > 0).all()  # a beam as wide as the catalogue ranks everything
    assert found.size[0] == 2  # item 14 shares its semantic ID
    other = Sequences(Sequences.Config(path=str(write_shop(tmp_path, items=ITEMS[::-1])), dataset="shop"))
    with pytest.raises(CheckpointError, match="made for catalogue"):
        semantic_ids(other, other.cases("test"), folder, folder, given)


def test_popularity_breaks_its_many_ties_fairly(source: Sequences) -> None:
    found = popularity(source, source.cases("test"))  # 10..13 were bought once, 14 and 15 never
    assert (found.before.tolist(), found.size.tolist()) == ([4, 0], [2, 4])  # targets 14 and 11
    assert measures(found, np.array([True, False]))["HR@1"].tolist() == [0.0, 0.25]


def test_the_summary_is_means_intervals_coverage_and_diversity() -> None:
    trie = Trie.of(np.array([[1, 3], [1, 4], [2, 3], [1, 4]]))
    ranking = Ranking(
        before=np.array([0, 3]), size=np.array([1, 1]), first=np.array([[3, 4], [3, ABSENT]]), leaves=True
    )
    found = summary(ranking, np.array([True, False]), trie)
    assert found["HR@1"]["mean"] == 0.5 and found["HR@5"]["mean"] == 1.0
    assert found["tail HR@10"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 1}
    assert found["coverage@10"] == 0.75  # leaf 3 is one item, leaf 4 two, of four
    assert np.isnan(found["diversity@10"])  # a list of one has no pairs


def test_scores_of_items_become_lists() -> None:
    found = by_scores([(np.array([[0.1, 0.9, 0.5]]), np.array([2]))])
    assert (found.before.tolist(), found.size.tolist(), found.first.tolist()) == ([1], [1], [[1, 2, 0]])


def test_sasrec_learns_a_cycle_and_repeats_with_its_seed() -> None:
    settings = SasRecSettings(width=16, heads=1, blocks=1, places=6, dropout=0.0, lr=1e-2, batch=8, max_epochs=40)
    cycle = [[(start + step) % 5 for step in range(6)] for start in range(5)]
    histories, targets = [row[:-1] for row in cycle], [row[-1] for row in cycle]
    models = [fit(cycle, histories, targets, 5, settings, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (scores(model, [*histories, []], settings) for model in models)
    assert first.shape == (6, 5)
    assert first[:5].argmax(1).tolist() == targets
    assert (first == again).all() and (first != other).any()


def test_sasrec_does_not_see_what_follows() -> None:
    settings = SasRecSettings(width=16, heads=1, blocks=1, places=6, max_epochs=1)
    model = fit([[0, 1, 2]], [[0]], [1], 5, settings, seed=0).eval()
    rows = torch.tensor([[1, 2, 3, 4], [1, 2, 5, 1]])
    states = model(rows)
    assert torch.equal(states[0, :2], states[1, :2]) and not torch.equal(states[0, 2], states[1, 2])


def test_the_engine_and_the_plain_beam_find_the_same_items_in_the_same_order(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    _, trie = Catalogue.of_model(folder, tokenizer.convert_tokens_to_ids)
    prompts = [np.array([1, 4, 6, 9], np.int32), np.array([1], np.int32)]
    leaves, likely = rank_leaves(AutoModelForCausalLM.from_pretrained(folder), prompts, trie, width=3)
    engine = TrieEngine.from_pretrained(
        TrieEngine.Config(decoder="beam", deterministic=False, device="cpu"), folder, seed=0, dtype="float32"
    )
    for prompt, ranked, scored in zip(prompts, leaves, likely, strict=True):
        request = GrowRequest(
            task_id="t", token_ids=prompt, num_candidates=3, max_tokens=3, sampling=Sampling(temperature=0)
        )
        growth = asyncio.run(engine.grow(request))
        paths = [growth.path(candidate) for candidate in range(3)]
        tokens = [np.concatenate([growth.nodes[node].token_ids for node in path]) for path in paths]
        assert trie.walk(np.array(tokens)).tolist() == ranked.tolist()
        totals = [sum(float(growth.nodes[node].behavior_logprobs.sum()) for node in path) for path in paths]
        assert totals == pytest.approx(scored, abs=1e-4)


def test_two_systems_of_one_name_are_refused_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["recommend", "--dataset", "shop", "popularity", "ours=a", "ours=b"])
    with pytest.raises(SystemExit, match=r"ours names several systems.*ours_0="):
        main()
