"""Semantic IDs: the learner on trees against flat rows, and decoding under a trie against `transformers`' beam search.

    python -m benchmarks.sid                              all parts, writes benchmarks/results/sid.json and sid.md
    python -m benchmarks.sid --parts decode --beams 4     one part, another size
    python -m benchmarks.sid --model MODEL --run RUN      with the part `worth`, on a run of v_star_cpu.yaml

    learner   forward and backward of one request's candidates: one tree, or a row per candidate with its own history
    decode    users per second of a constrained beam search: the trie engine, and `generate` with a
              `prefix_allowed_tokens_fn` over a dictionary of prefixes, as MiniOneRec decodes. Equal beams: the peer
              renormalises over what is allowed too, which its published form does not
    search    VED and beam at the same token budget: users per second, tokens, forwards in sequence
    scale     the engine's beam on catalogues of a thousand to a million items
    worth     a trained policy and value head: how many held-out users find their next item among the candidates of
              VED and of a beam, as many candidates for as many tokens

The model of the others is random: speed does not depend on its weights. Times are medians of `--rounds`, taken in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.machine import machine
from benchmarks.recommend import prompts as shown_histories
from benchmarks.recommend import weights_of
from rlkit.algorithms import grpo
from rlkit.catalogue.items import Catalogue
from rlkit.catalogue.trie import Trie
from rlkit.data.packing import pack
from rlkit.data.sequences import Sequences
from rlkit.learner.gradient import add_gradients
from rlkit.learner.tree_policy import TreePolicy
from rlkit.metrics import bootstrap_mean
from rlkit.models.value_head import add_value_head
from rlkit.policy.base import GrowRequest, Sampling
from rlkit.policy.invariance import VARIABLE, strict_mode
from rlkit.policy.trie_engine import TrieEngine
from rlkit.policy.ved import VedSettings
from rlkit.records import Leaf, Node, RewardTerm, SamplingState, ScoredTree, Task, Tree

Row = dict[str, Any]
CODES = 256
SPECIAL = 4


class Letters:
    """Stands in for a tokenizer: the engine only wants display strings."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Numbers in angle brackets."""
        return "".join(f"<{token}>" for token in token_ids)


def catalogue(num_items: int, levels: int, seed: int = 0) -> Trie:
    """Random items; codes of a level are unevenly popular, so prefixes are shared as in real catalogues."""
    rng = np.random.default_rng(seed)
    popularity = 1 / np.arange(1, CODES + 1) ** 0.5
    codes = rng.choice(CODES, (num_items, levels), p=popularity / popularity.sum())
    return Trie.of(codes + SPECIAL + CODES * np.arange(levels))


def model(levels: int, hidden: int, layers: int, seed: int = 0) -> LlamaForCausalLM:
    """A random float32 Llama over the codes of all levels."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=SPECIAL + CODES * levels,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 16 * 16,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        num_key_value_heads=max(1, hidden // 64),
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.3,  # choices that are not all alike
        eos_token_id=None,
        bos_token_id=1,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def histories(num_users: int, length: int, vocab: int, seed: int = 0) -> list[NDArray[np.int32]]:
    """Random prompts of one length."""
    rng = np.random.default_rng(seed)
    return [rng.integers(SPECIAL, vocab, length).astype(np.int32) for _ in range(num_users)]


def engine(net: Any, trie: Trie, **settings: Any) -> TrieEngine:
    """The trie engine, as a run has it."""
    return TrieEngine(TrieEngine.Config(**settings), model=net, tokenizer=Letters(), trie=trie, seed=0)


def requests(prompts: Sequence[NDArray[np.int32]], count: int, temperature: float) -> list[GrowRequest]:
    """One request per prompt."""
    return [
        GrowRequest(
            task_id=f"user {index}",
            token_ids=prompt,
            num_candidates=count,
            max_tokens=8,
            sampling=Sampling(temperature=temperature),
        )
        for index, prompt in enumerate(prompts)
    ]


def timed(rounds: int, *calls: Callable[[], Any]) -> list[float]:
    """Median seconds of each call; they take turns, so that a busy minute hits all of them."""
    for call in calls:
        call()  # kernels are chosen and memory is mapped
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, taken in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in seconds]


# ---------------------------------------------------------------------------------------------------------- learner


def candidates(trie: Trie, prompt: NDArray[np.int32], count: int, seed: int) -> tuple[ScoredTree, list[ScoredTree]]:
    """Distinct candidates as one tree, and as trees of one candidate each; the same tokens and rewards.

    They are half of them neighbours in the trie, as a beam's are, and half of them anywhere.
    """
    rng = np.random.default_rng(seed)
    first = int(rng.integers(trie.first_leaf, trie.num_nodes - count))
    near = np.arange(first, first + count // 2)
    far = rng.choice(np.setdiff1d(np.arange(trie.first_leaf, trie.num_nodes), near), count - count // 2, replace=False)
    paths = trie.path(np.sort(np.concatenate([near, far])))
    rewards = rng.normal(size=count)
    nodes, at, leaves = [Node(parent=-1, author="prompt", token_ids=prompt)], {(): 0}, []
    for index, path in enumerate(paths.tolist()):
        for level in range(1, len(path) + 1):
            if (prefix := tuple(path[:level])) not in at:
                at[prefix] = len(nodes)
                nodes.append(policy_node(at[prefix[:-1]], prefix[-1:]))
        leaves.append(Leaf(node=at[tuple(path)], sample_index=index, status="done"))
    flat = [
        _scored(
            [nodes[0], *(policy_node(level, path[level : level + 1]) for level in range(len(path)))],
            [Leaf(node=len(path), sample_index=0, status="done")],
            rewards[index : index + 1],
        )
        for index, path in enumerate(paths.tolist())
    ]
    return _scored(nodes, leaves, rewards), flat


def policy_node(parent: int, tokens: Sequence[int]) -> Node:
    """A sampled node."""
    return Node(
        parent=parent,
        author="policy",
        token_ids=np.array(tokens, np.int32),
        behavior_logprobs=np.full(len(tokens), -3.0, np.float32),
        sampling=SamplingState(),
    )


def _scored(nodes: Sequence[Node], leaves: Sequence[Leaf], rewards: NDArray[np.float64]) -> ScoredTree:
    tree = Tree(task=Task(id="user", question="?"), nodes=tuple(nodes), leaves=tuple(leaves))
    term = RewardTerm(name="hit", weight=1.0, values=rewards, status=("ok",) * len(rewards))
    return ScoredTree(tree=tree, terms=(term,))


def learner(given: argparse.Namespace) -> Iterator[Row]:
    """Tree against flat rows. Both are credited alike: a sum of log-probabilities weighted by the rewards."""
    trie = catalogue(given.items, given.levels)
    net = model(given.levels, given.hidden, given.layers)
    policy, config = TreePolicy(net, chunk=4096), grpo.GrpoConfig(normalize="together")
    for length in given.histories:
        for count in given.groups:
            [prompt] = histories(1, length, net.config.vocab_size)
            tree, flat = candidates(trie, prompt, count, seed=length + count)
            row_tokens = max(4096, length + 64)
            credited = grpo.ALGORITHM.credit([tree], config, None)
            whole = credited[0].paths
            singles = [  # the tree's own advantages and weights, on a path of one's own
                type(credited[0])(
                    scored=alone,
                    paths=tuple(
                        type(whole[0])(
                            leaf=0, tokens=alone.tree.policy_tokens(0), advantages=p.advantages, weights=p.weights
                        )
                        for p in whole
                        if p.leaf == index
                    ),
                )
                for index, alone in enumerate(flat)
            ]
            packed = pack(credited, row_tokens), pack(singles, row_tokens)

            def step(rows: Sequence[Any]) -> None:
                policy.zero_grad(set_to_none=True)
                add_gradients(policy, rows, grpo.ALGORITHM, config)

            def gradient(rows: Sequence[Any]) -> torch.Tensor:
                step(rows)
                return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])

            ours, theirs = gradient(packed[0].rows), gradient(packed[1].rows)
            tree_s, flat_s = timed(given.rounds, lambda p=packed: step(p[0].rows), lambda p=packed: step(p[1].rows))
            bound = packed[1].num_tokens / packed[0].num_tokens
            yield {
                "history": length,
                "candidates": count,
                "tree_tokens": packed[0].num_tokens,
                "flat_tokens": packed[1].num_tokens,
                "tree_s": tree_s,
                "flat_s": flat_s,
                "speedup": flat_s / tree_s,
                "bound": bound,
                "of_bound": flat_s / tree_s / bound,
                "gradient_difference": float((ours - theirs).norm() / theirs.norm()),
            }


# --------------------------------------------------------------------------------------------------------- decoding


def allowed(trie: Trie, length: int) -> Callable[[int, torch.Tensor], list[int]]:
    """What may follow a prefix, from a dictionary of prefixes, as MiniOneRec looks it up."""
    table: dict[tuple[int, ...], list[int]] = {}
    for leaf_path in trie.path(np.arange(trie.first_leaf, trie.num_nodes)).tolist():
        for level in range(len(leaf_path)):
            table.setdefault(tuple(leaf_path[:level]), []).append(leaf_path[level])
    table = {prefix: sorted(set(tokens)) for prefix, tokens in table.items()}

    def look_up(batch: int, ids: torch.Tensor) -> list[int]:
        return table.get(tuple(ids[length:].tolist()), [0])

    return look_up


def decode(given: argparse.Namespace) -> Iterator[Row]:
    """Equal beams on both sides; `bound`: the tokens that the peer reads, each history once a beam, for one of ours."""
    trie = catalogue(given.items, given.levels)
    later = given.beams * (given.levels - 1)  # of the candidates; their last is never read
    ours, theirs = (model(given.levels, given.hidden, given.layers) for _ in range(2))
    running = engine(ours, trie, users=given.users)
    for length in given.histories:
        prompts = histories(given.users, length, ours.config.vocab_size)
        look_up, ids = allowed(trie, length), torch.tensor(np.stack(prompts), dtype=torch.long)
        asked = requests(prompts, given.beams, 0.0)

        def peer(ids: torch.Tensor = ids, look_up: Any = look_up) -> torch.Tensor:
            return theirs.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                num_beams=given.beams,
                num_return_sequences=given.beams,
                max_new_tokens=given.levels,
                do_sample=False,
                length_penalty=0.0,
                renormalize_logits=True,
                prefix_allowed_tokens_fn=look_up,
            )

        with torch.inference_mode():
            answers = peer()[:, length:].view(given.users, given.beams, -1).tolist()
            found = [
                [[grown.tree.token(n) for n in grown.tree.path(leaf)] for leaf in grown.candidates]
                for grown in running.search(asked)
            ]
            legal = all(int(trie.walk(np.array([path]))[0]) >= 0 for user in (*answers, *found) for path in user)
            engine_s, peer_s = timed(given.rounds, lambda a=asked: running.search(a), peer)
        yield {
            "history": length,
            "beams": given.beams,
            "users": given.users,
            "engine_users_per_s": given.users / engine_s,
            "generate_users_per_s": given.users / peer_s,
            "speedup": peer_s / engine_s,
            "bound": (given.beams * length + later) / (length + later),
            "all_legal": legal,
            "same_candidates": float(
                np.mean(
                    [
                        len({*map(tuple, a)} & {*map(tuple, b)}) / given.beams
                        for a, b in zip(answers, found, strict=True)
                    ]
                )
            ),
        }


def search(given: argparse.Namespace) -> Iterator[Row]:
    """VED and beam at equal token budgets, with a value head that is computed but knows nothing."""
    trie = catalogue(given.items, given.levels)
    prompts = histories(given.users, given.histories[0], SPECIAL + CODES * given.levels)
    for decoder, multiple in (("beam", 1.0), ("ved", 1.0), ("ved", 2.0), ("ved", 4.0)):
        net = model(given.levels, given.hidden, given.layers)
        add_value_head(net, "block" if decoder == "ved" else "none")
        running = engine(net, trie, decoder=decoder, users=given.users, ved=VedSettings(budget_multiple=multiple))
        asked = requests(prompts, 16, 1.0)
        with torch.inference_mode():
            grown = running.search(asked)
            [seconds] = timed(given.rounds, lambda r=running, a=asked: r.search(a))
        yield {
            "decoder": decoder,
            "budget_multiple": multiple,
            "users_per_s": given.users / seconds,
            "tokens": float(np.mean([g.tree.num_evaluated for g in grown])),
            "forwards": float(np.mean([g.num_forwards for g in grown])),
            "candidates": float(np.mean([len(g.candidates) for g in grown])),
            "beyond_beam": float(np.mean([not g.tree.in_beam[leaf] for g in grown for leaf in g.candidates])),
            "tokens_per_s": float(np.sum([g.tree.num_evaluated for g in grown])) / seconds,
        }


def scale(given: argparse.Namespace) -> Iterator[Row]:
    """Beams of one size on growing catalogues."""
    net = model(given.levels, given.hidden, given.layers)
    prompts = histories(given.users, given.histories[0], net.config.vocab_size)
    for size in given.sizes:
        start = time.perf_counter()
        trie = catalogue(size, given.levels)
        built = time.perf_counter() - start
        net = model(given.levels, given.hidden, given.layers)
        running, asked = engine(net, trie, users=given.users), requests(prompts, given.beams, 0.0)
        [seconds] = timed(given.rounds, lambda r=running, a=asked: r.search(a))
        memory = sum(getattr(trie, name).nbytes for name in trie.__dataclass_fields__)
        yield {
            "items": size,
            "build_s": built,
            "trie_mib": memory / 2**20,
            "users_per_s": given.users / seconds,
        }


def worth(given: argparse.Namespace) -> Iterator[Row]:
    """Trained weights; nothing where no run is named."""
    if given.run is None:
        return
    tokenizer: Any = AutoTokenizer.from_pretrained(given.model, local_files_only=True)
    items, trie = Catalogue.of_model(given.model, tokenizer.convert_tokens_to_ids)
    source = Sequences(Sequences.Config(path=str(given.data), dataset=given.dataset, max_history=given.max_history))
    source.check_model(given.model, setting="--model")
    cases = source.cases("dev")[: given.held_out]
    prompts, folder = shown_histories(tokenizer, items, cases), weights_of(given.run)
    targets = trie.leaf_of_item[[items.row_of[case.targets[0]] for case in cases]]
    for decoder in ("beam", "ved"):
        net = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
        add_value_head(net, "block" if decoder == "ved" else "none", folder)
        settings = VedSettings(expand_root=trie.levels == 3)  # as v_star.yaml and v_star_cpu.yaml search
        running = engine(net, trie, decoder=decoder, users=given.users, ved=settings)
        for count in (16, 32, 64):
            asked = requests(prompts, count, 1.0)
            start = time.perf_counter()
            grown = running.search(asked)
            seconds = time.perf_counter() - start
            found = [
                bool({g.tree.trie_node[leaf] for leaf in g.candidates} & {target})
                for g, target in zip(grown, targets.tolist(), strict=True)
            ]
            tokens = float(np.mean([g.tree.num_evaluated for g in grown]))
            low, high = bootstrap_mean([float(hit) for hit in found], num_resamples=500)
            yield {
                "decoder": decoder,
                "candidates": float(np.mean([len(g.candidates) for g in grown])),
                "tokens": tokens,
                "hit": float(np.mean(found)),
                "low": low,
                "high": high,
                "hits_per_1000_tokens": 1000 * float(np.mean(found)) / tokens,
                "forwards": float(np.mean([g.num_forwards for g in grown])),
                "users_per_s": len(cases) / seconds,
            }


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "learner": learner,
    "decode": decode,
    "search": search,
    "scale": scale,
    "worth": worth,
}


def report(results: dict[str, list[Row]], head: dict[str, Any], command: str) -> str:
    """A page of one table per part."""
    lines = [
        "# Semantic IDs",
        "",
        f"`{command}`",
        "",
        f"{head['cpu']}, {head['threads']} threads, torch {head['torch']}, ",
    ]
    lines[-1] += f"transformers {head['transformers']}, commit {head['commit']}, load {head['load_average']}."
    for part, rows in results.items():
        if rows:
            lines += ["", f"## {part}", "", f"| {' | '.join(rows[0])} |", "|" + " --- |" * len(rows[0])]
            lines += [f"| {' | '.join(map(_cell, row.values()))} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--items", type=int, default=12_000)
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--histories", type=int, nargs="+", default=[50, 128, 256, 512], help="tokens")
    parser.add_argument("--groups", type=int, nargs="+", default=[16, 32, 64], help="candidates, of the learner")
    parser.add_argument("--beams", type=int, default=16)
    parser.add_argument("--users", type=int, default=32, help="decoded at the same time, by both sides")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--model", type=Path, help="folder with tokenizer and catalogue, of `worth`")
    parser.add_argument("--run", type=Path, help="a run, or a checkpoint of it, of `worth`")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("RLKIT_DATA", "data"), "seqrec"))
    parser.add_argument("--dataset", default="office")
    parser.add_argument("--max-history", type=int, default=10)
    parser.add_argument("--held-out", type=int, default=1000, help="users of the validation split")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sid.json"))
    given = parser.parse_args()
    os.environ.setdefault(VARIABLE, strict_mode())  # before the first product of the process
    torch.set_num_threads(given.threads)
    head, results = machine(given.threads), dict[str, list[Row]]()
    for part in given.parts:
        results[part] = []
        for row in PARTS[part](given):
            results[part].append(row)
            print(part, {name: _cell(value) for name, value in row.items()}, flush=True)
    settings = {n: str(v) if isinstance(v, Path) else v for n, v in vars(given).items() if n != "out"}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"machine": head, "settings": settings, "results": results}, indent=1) + "\n")
    command = shlex.join(["python", "-m", "benchmarks.sid", *sys.argv[1:]])
    given.out.with_suffix(".md").write_text(report(results, head, command), encoding="utf-8")


if __name__ == "__main__":
    main()
