"""Grows trees alone, together and in other company; prints which of them are equal to the last bit."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlkit.catalogue.items import Catalogue
from rlkit.models.recommender import build_recommender
from rlkit.models.value_head import add_value_head
from rlkit.policy.base import GrowRequest
from rlkit.policy.trie_engine import TrieEngine
from rlkit.policy.ved import VedSettings


def grown(engine: TrieEngine, requests: list[GrowRequest]) -> list[bytes]:
    """Every number of every search, as bytes."""
    out = []
    for found in engine.search(requests):
        tree = found.tree
        numbers = [tree.total, tree.value, tree.entropy, tree.visits, tree.trie_node, found.candidates]
        out.append(b"".join(np.array(column, np.float64).tobytes() for column in numbers))
    return out


def main() -> None:
    """One line of JSON: decoder -> circumstance -> equal."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 12, (300, 3))
    sids = tuple((f"<a_{a}>", f"<b_{b}>", f"<c_{c}>") for a, b, c in codes)
    items = Catalogue(item_ids=tuple(range(300)), sids=sids, titles=("",) * 300)
    report: dict[str, dict[str, bool]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        build_recommender(folder, items, hidden=64, layers=2, heads=2, max_context=600)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        _, trie = Catalogue.of_model(folder, tokenizer.convert_tokens_to_ids)
        lengths = (1, 7, 40, 299, 33, 64, 2, 500)
        requests = [
            GrowRequest(
                task_id=f"user {user}",
                token_ids=np.concatenate([[1], rng.integers(4, 40, length - 1)]).astype(np.int32),
                num_candidates=8,
                max_tokens=3,
            )
            for user, length in enumerate(lengths)
        ]
        for decoder in ("ved", "iid", "without_replacement", "beam"):
            model = AutoModelForCausalLM.from_pretrained(folder)
            add_value_head(model, "block")
            head = model.value_head.regressor[-1].weight
            head.data.copy_(head.data.new_tensor(rng.normal(size=head.shape)))
            config = TrieEngine.Config(decoder=decoder, ved=VedSettings(beam=4, budget=40), device="cpu")
            engine = TrieEngine(config, model=model, tokenizer=tokenizer, trie=trie, seed=1)
            together = grown(engine, requests)
            report[decoder] = {
                "alone": together == [grown(engine, [request])[0] for request in requests],
                "reversed": together == grown(engine, requests[::-1])[::-1],
                "pairs": together == [one for i in range(0, 8, 2) for one in grown(engine, requests[i : i + 2])],
            }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
