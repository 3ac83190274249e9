"""The trie engine against every path of a small catalogue, computed with transformers and no cache."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rlkit.catalogue.items import Catalogue
from rlkit.catalogue.trie import Trie
from rlkit.data.packing import pack, uncredited
from rlkit.errors import EngineError
from rlkit.learner.gradient import score_rows
from rlkit.learner.tree_policy import TreePolicy
from rlkit.models.recommender import build_recommender
from rlkit.models.value_head import add_value_head, chains
from rlkit.policy.base import GrowRequest, Growth, Sampling
from rlkit.policy.decoders import inclusion_logprob
from rlkit.policy.trie_engine import TrieEngine
from rlkit.policy.ved import VedSettings
from rlkit.records import Leaf, Node, ScoredTree, Task
from rlkit.rollout.assemble import Path as RunPath
from rlkit.rollout.assemble import assemble

NUM_ITEMS = 60
Ids = np.ndarray


def catalogue() -> Catalogue:
    """60 items on 3 levels of 5, 4 and 4 codes; the last two share a semantic ID."""
    rng = np.random.default_rng(1)
    paths = rng.permutation(80)[: NUM_ITEMS - 1]
    sids = [(f"<a_{p // 16}>", f"<b_{p // 4 % 4}>", f"<c_{p % 4}>") for p in [*paths, paths[-1]]]
    return Catalogue(item_ids=tuple(range(NUM_ITEMS)), sids=tuple(sids), titles=("",) * NUM_ITEMS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sid") / "model"
    build_recommender(path, catalogue(), hidden=32, layers=2, heads=2, max_context=64)
    return path


@pytest.fixture(scope="module")
def trie(folder: Path) -> Trie:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Catalogue.of_model(folder, tokenizer.convert_tokens_to_ids)[1]


def loaded(folder: Path, head: str = "none", scale: float = 8.0) -> torch.nn.Module:
    """The model with embeddings scaled up, so that its choices are not all alike; a value head that is not zero."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    add_value_head(model, head)  # type: ignore[arg-type]
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(scale)
        if head != "none":
            torch.manual_seed(3)
            model.value_head.regressor[-1].weight.normal_()
    return model


def make(folder: Path, trie: Trie, head: str = "none", **settings: object) -> TrieEngine:
    config = TrieEngine.Config(deterministic=False, device="cpu", **settings)  # type: ignore[arg-type]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return TrieEngine(config, model=loaded(folder, head), tokenizer=tokenizer, trie=trie, seed=7)


def prompts(count: int = 5) -> list[Ids]:
    rng = np.random.default_rng(5)
    return [np.concatenate([[1], rng.integers(4, 17, 3 * (user % 4))]).astype(np.int32) for user in range(count)]


def requests(count: int = 5, candidates: int = 6, **sampling: float) -> list[GrowRequest]:
    return [
        GrowRequest(
            task_id=f"user{user}",
            token_ids=prompt,
            num_candidates=candidates,
            max_tokens=3,
            sampling=Sampling(**sampling),  # type: ignore[arg-type]
        )
        for user, prompt in enumerate(prompts(count))
    ]


def grow(engine: TrieEngine, asked: list[GrowRequest]) -> list[Growth]:
    async def all_of_them() -> list[Growth]:
        return await asyncio.gather(*(engine.grow(request) for request in asked))

    return asyncio.run(all_of_them())


@torch.no_grad()
def exact(folder: Path, trie: Trie, prompt: Ids, temperature: float = 1.0) -> dict[tuple[int, ...], float]:
    """ln π of every path under the trie, by one plain forward over each."""
    model = loaded(folder)
    out = {}
    for leaf in range(trie.first_leaf, trie.num_nodes):
        path = trie.path(np.array([leaf]))[0]
        logits = model(input_ids=torch.tensor([[*prompt, *path]])).logits[0] / temperature
        total, node = 0.0, 0
        for level, token in enumerate(path):
            children = np.arange(trie.first_child[node], trie.first_child[node + 1])
            allowed = torch.tensor(trie.token[children])
            row = logits[len(prompt) + level - 1][allowed].double().log_softmax(-1)
            total += float(row[(allowed == int(token)).nonzero()[0, 0]])
            [node] = trie.child(np.array([node]), np.array([token]))
        out[tuple(int(token) for token in path)] = total
    return out


def paths_of(growth: Growth) -> list[tuple[int, ...]]:
    return [
        tuple(int(growth.nodes[node].token_ids[0]) for node in growth.path(index))
        for index in range(len(growth.candidates))
    ]


def logprob_of(growth: Growth, index: int) -> float:
    return sum(float(growth.nodes[node].behavior_logprobs[0]) for node in growth.path(index))  # type: ignore[index]


def test_a_beam_wider_than_the_catalogue_lists_every_item_by_its_exact_probability(folder: Path, trie: Trie) -> None:
    asked = requests(candidates=100, temperature=0.0)
    for request, growth in zip(asked, grow(make(folder, trie), asked), strict=True):
        expected = exact(folder, trie, request.token_ids)
        assert math.fsum(map(math.exp, expected.values())) == pytest.approx(1)
        found = paths_of(growth)
        assert sorted(found) == sorted(expected) and len(found) == 59
        assert [logprob_of(growth, i) for i in range(59)] == pytest.approx([expected[p] for p in found], abs=2e-5)
        assert [expected[p] for p in found] == pytest.approx(sorted(expected.values(), reverse=True), abs=2e-5)
        assert growth.search.sampler == "beam" and growth.search.num_forwards == 3  # the last level needs none


@pytest.mark.parametrize("decoder", ["ved", "beam", "iid", "without_replacement"])
def test_every_decoder_makes_legal_items_with_the_probabilities_that_it_reports(
    decoder: str, folder: Path, trie: Trie
) -> None:
    asked = requests(temperature=0.7)
    engine = make(folder, trie, "block", decoder=decoder, ved=VedSettings(beam=2, budget=20), users=2)
    for request, growth in zip(asked, grow(engine, asked), strict=True):
        expected = exact(folder, trie, request.token_ids, 0.7)
        found = paths_of(growth)
        assert set(found) <= set(expected) and 0 < len(found) <= 6
        assert decoder == "iid" or len(set(found)) == len(found)
        assert growth.search.sampler == decoder
        for index, path in enumerate(found):
            assert logprob_of(growth, index) == pytest.approx(expected[path], abs=5e-5)
        for node in growth.nodes:
            assert node.sampling is not None and node.sampling.temperature == 0.7
            assert node.token_ids[0] in node.sampling.support_ids  # type: ignore[operator]


def test_the_support_of_a_node_is_what_the_trie_allows_there(folder: Path, trie: Trie) -> None:
    [growth] = grow(make(folder, trie, decoder="iid"), requests(1))
    for index, path in enumerate(paths_of(growth)):
        node = 0
        for step, token in zip(growth.path(index), path, strict=True):
            children = trie.token[trie.first_child[node] : trie.first_child[node + 1]]
            sampling = growth.nodes[step].sampling
            assert sampling is not None and sampling.support_ids.tolist() == children.tolist()  # type: ignore[union-attr]
            [node] = trie.child(np.array([node]), np.array([token]))


def test_a_tree_does_not_depend_on_the_users_beside_it(folder: Path, trie: Trie) -> None:
    for decoder in ("ved", "iid", "without_replacement"):
        engine = make(folder, trie, "mlp", decoder=decoder, ved=VedSettings(beam=2, budget=20))
        asked = requests(5)
        together = grow(engine, asked)
        alone = [grow(engine, [request])[0] for request in reversed(asked)][::-1]
        assert [paths_of(growth) for growth in together] == [paths_of(growth) for growth in alone]


def test_samples_are_drawn_with_the_probabilities_of_the_policy(folder: Path, trie: Trie) -> None:
    request = requests(1, candidates=3000)[0]
    [growth] = grow(make(folder, trie, decoder="iid"), [request])
    expected = exact(folder, trie, request.token_ids)
    found = paths_of(growth)
    for path, logprob in expected.items():
        p = math.exp(logprob)
        assert abs(found.count(path) / 3000 - p) < 5 * math.sqrt(p * (1 - p) / 3000) + 1e-3
    assert len(growth.nodes) < 3000  # equal draws share their nodes


def test_sampling_without_replacement_estimates_expectations_without_bias(folder: Path, trie: Trie) -> None:
    request = requests(1, candidates=6)[0]
    expected = exact(folder, trie, request.token_ids)
    worth = {path: (path[0] * 7 + path[2]) % 5 for path in expected}
    truth = sum(math.exp(logprob) * worth[path] for path, logprob in expected.items())
    engine = make(folder, trie, decoder="without_replacement")
    many = [
        GrowRequest(task_id=f"draw{i}", token_ids=request.token_ids, num_candidates=6, max_tokens=3) for i in range(400)
    ]
    estimates = []
    for grown in engine.search(many):
        tree = grown.tree
        totals = np.array([tree.total[leaf] for leaf in grown.candidates])
        weights = np.exp(totals - inclusion_logprob(totals, tree.threshold))
        values = [worth[tuple(tree.token(n) for n in tree.path(leaf))] for leaf in grown.candidates]
        estimates.append(float(weights @ np.array(values)))
    error = np.std(estimates) / math.sqrt(len(estimates))
    assert abs(np.mean(estimates) - truth) < 4 * error
    assert error < 0.2  # else the line above says nothing


@torch.no_grad()
@pytest.mark.parametrize("head", ["mlp", "block"])
def test_values_are_those_of_the_head_on_a_plain_forward(head: str, folder: Path, trie: Trie) -> None:
    asked = requests(3)
    engine = make(folder, trie, head, decoder="ved", ved=VedSettings(beam=3, budget=30))
    model = loaded(folder, head)
    for request, growth in zip(asked, grow(engine, asked), strict=True):
        for index, path in enumerate(paths_of(growth)):
            ids = torch.tensor([[*request.token_ids, *path]])
            states = model.model(input_ids=ids).last_hidden_state[0, -4:]  # after the prompt, then after each token
            chain, present = chains(torch.tensor([-1, 0, 1, 2]))
            values = model.value_head(states[chain], present)
            for level, node in enumerate(growth.path(index), start=1):
                search = growth.nodes[node].search
                if search is not None and not math.isnan(search.value):
                    assert search.value == pytest.approx(float(values[level]), abs=1e-4)
        assert any(not math.isnan(growth.nodes[leaf].search.value) for leaf in growth.candidates)  # type: ignore[union-attr]


@torch.no_grad()
def test_the_full_vocabulary_is_a_switch_that_records_another_distribution(folder: Path, trie: Trie) -> None:
    request = requests(1, temperature=1.0)[0]
    [growth] = grow(make(folder, trie, decoder="beam", scored="vocabulary"), [request])
    logits = loaded(folder)(input_ids=torch.tensor([[*request.token_ids]])).logits[0, -1].log_softmax(-1)
    first = growth.nodes[growth.path(0)[0]]
    assert first.sampling is not None and first.sampling.support_ids is None
    assert float(first.behavior_logprobs[0]) == pytest.approx(float(logits[int(first.token_ids[0])]), abs=1e-5)  # type: ignore[index]


def test_equal_weights_give_equal_trees_and_an_update_changes_them(folder: Path, trie: Trie) -> None:
    engine, other = make(folder, trie, "mlp"), loaded(folder, "mlp", scale=3.0)
    asked = requests(2, candidates=12)
    before = grow(engine, asked)
    assert [paths_of(g) for g in grow(engine, asked)] == [paths_of(g) for g in before]
    weights = {name: p.detach() for name, p in other.named_parameters()}
    engine.load_weights(weights, 1)
    after = grow(engine, asked)
    assert after[0].nodes[0].policy_version == 1
    assert [logprob_of(g, 0) for g in after] != [logprob_of(g, 0) for g in before]
    with pytest.raises(EngineError, match="value head"):
        engine.load_weights({n: w for n, w in weights.items() if not n.startswith("value_head")}, 2)


def test_what_cannot_be_grown_is_refused_with_its_reason(folder: Path, trie: Trie) -> None:
    engine = make(folder, trie, ved=VedSettings(beam=8, budget=20))
    request = requests(1)[0]

    def asked(**changes: object) -> GrowRequest:
        return replace(request, **changes)  # type: ignore[arg-type]

    for bad, reason in (
        (asked(token_ids=np.ones(62, np.int32)), "no room for 3 in a context of 64"),
        (asked(token_ids=np.zeros(0, np.int32)), "a prompt of 0 tokens"),
        (asked(max_tokens=2), "below the 3 tokens of an item"),
        (asked(sampling=Sampling(top_k=5)), "no top_k"),
        (asked(), "below the 22 of the initial beam of 8"),  # 1 + 5 first codes + 8 + 8
    ):
        with pytest.raises(EngineError, match=reason):
            grow(engine, [bad])


@pytest.mark.parametrize("scored", ["trie", "vocabulary"])
def test_the_learner_scores_the_distribution_that_the_engine_recorded(scored: str, folder: Path, trie: Trie) -> None:
    asked = requests(3, temperature=0.8)
    engine = make(folder, trie, decoder="ved", scored=scored, ved=VedSettings(beam=2, budget=20))
    trees = []
    for request, growth in zip(asked, grow(engine, asked), strict=True):
        keys = dict(enumerate(growth.nodes))
        root = Node(parent=-1, author="prompt", token_ids=request.token_ids)
        paths = [
            RunPath(keys=(-1, *growth.path(i)), leaf=Leaf(node=-1, sample_index=i, status="done"))
            for i in range(len(growth.candidates))
        ]
        trees.append(assemble(Task(id=request.task_id, question="?"), {-1: root, **keys}, paths, growth.search))
    packed = pack([uncredited(ScoredTree(tree=tree, terms=())) for tree in trees], 64)
    found = score_rows(TreePolicy(loaded(folder)), packed, [tree.num_tokens for tree in trees])
    for tree, logprobs in zip(trees, found, strict=True):
        assert logprobs[tree.policy_mask] == pytest.approx(tree.behavior_logprobs[tree.policy_mask], abs=5e-5)


def test_a_history_is_computed_once_and_many_users_share_every_forward(folder: Path, trie: Trie) -> None:
    asked = requests(5, candidates=6)
    for decoder, forwards in (("beam", 3), ("iid", 3), ("without_replacement", 3)):
        engine = make(folder, trie, decoder=decoder)
        grown = engine.search(asked)
        assert engine.counts.num_prefilled == sum(len(request.token_ids) for request in asked)
        assert engine.counts.num_fed == sum(g.tree.num_evaluated - 1 for g in grown)
        assert engine.counts.num_forwards == forwards == max(g.num_forwards for g in grown)
    engine = make(folder, trie, "mlp", decoder="ved", ved=VedSettings(beam=2, budget=20))
    grown = engine.search(asked)
    assert engine.counts.num_prefilled == sum(len(request.token_ids) for request in asked)
    assert engine.counts.num_forwards == max(g.num_forwards for g in grown)  # as deep as the longest search, not longer


def test_equal_draws_are_one_leaf_and_as_many_candidates(folder: Path, trie: Trie) -> None:
    [growth] = grow(make(folder, trie, decoder="iid"), requests(1, candidates=200))
    assert len(growth.candidates) == 200
    assert len(set(growth.candidates)) == len(set(paths_of(growth))) < 60  # no item has two leaves


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["ved", "beam", "iid", "without_replacement"])
def test_four_levels_and_a_million_items_are_searched_as_well(decoder: str) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (1_000_000, 4))
    trie = Trie.of(codes + 4 + 256 * np.arange(4))
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=4 + 4 * 256,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            max_position_embeddings=64,
        )
    )
    add_value_head(model, "mlp")
    config = TrieEngine.Config(deterministic=False, device="cpu", decoder=decoder)  # type: ignore[arg-type]
    engine = TrieEngine(config, model=model, tokenizer=Letters(), trie=trie, seed=7)
    asked = [replace(request, max_tokens=4) for request in requests(3, candidates=16)]
    for grown in engine.search(asked):
        paths = np.array([[grown.tree.token(node) for node in grown.tree.path(leaf)] for leaf in grown.candidates])
        assert len(paths) >= 8 and (trie.walk(paths) >= trie.first_leaf).all()


class Letters:
    """Stands in for a tokenizer."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(f"<{token}>" for token in token_ids)
