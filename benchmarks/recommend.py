"""Next-item recommendation, every system ranked over the whole catalogue: popularity, SASRec, models of semantic IDs.

    python -m benchmarks.recommend --dataset beauty popularity sasrec sft=runs/sid_sft

A system is `popularity`, `sasrec`, or NAME=FOLDER with the run, checkpoint or model to measure; `--model` is then the
folder that holds tokenizer and catalogue. Numbers are means over the users of the split, with 95 % bootstrap intervals;
`--per-user` keeps those of every user, in the order of the data, for paired tests between systems.

HR@k, NDCG@k   `rlkit.catalogue.ranking`: no sampled candidates, nothing of the history is taken out, ties count by
               their expectation over random orders
tail HR@10     over users whose target is not among the 20 % of items with most training interactions
coverage@10    share of the catalogue's items that anyone was shown
diversity@10   mean over users and pairs of their first 10 of 1 - (common prefix of semantic IDs) / L
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.machine import machine
from benchmarks.sasrec import SasRecSettings, fit, scores
from benchmarks.sid_beam import rank_leaves
from rlkit.catalogue.items import Catalogue
from rlkit.catalogue.ranking import Ties, coverage, diversity, gains, hits, long_tail, places, places_of_scores
from rlkit.catalogue.trie import ABSENT, Trie
from rlkit.data.sequences import Case, Sequences
from rlkit.metrics import bootstrap_mean
from rlkit.randomness import drawn

__all__ = ["Ranking", "main", "measures", "prompts", "summary", "weights_of"]

CUTOFFS = (1, 3, 5, 10)
SHOWN = 10
"""Places of a list that coverage and diversity look at."""
CHUNK = 1024
"""Users whose scores of all items exist at the same time."""
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """What a system recommended to the users of a split."""

    before: Ints
    """[U] items ranked before the target."""
    size: Ints
    """[U] items that tie with it, itself included; 0: not ranked."""
    first: Ints
    """[U, SHOWN] item rows or leaves, best first."""
    leaves: bool
    """Whether `first` holds leaves of the trie."""


def measures(ranking: Ranking, tail: NDArray[np.bool_]) -> dict[str, Floats]:
    """Name -> one number per user, NaN where it does not apply. `tail` [U]: the target is in the long tail."""
    found = {f"HR@{k}": hits(ranking.before, ranking.size, k) for k in CUTOFFS}
    found |= {f"NDCG@{k}": gains(ranking.before, ranking.size, k) for k in (5, 10)}
    found["tail HR@10"] = np.where(tail, found["HR@10"], np.nan)
    return found


def summary(ranking: Ranking, tail: NDArray[np.bool_], trie: Trie) -> dict[str, Any]:
    """Means with their 95 % intervals over users, coverage and diversity."""
    out: dict[str, Any] = {}
    for name, values in measures(ranking, tail).items():
        kept = values[~np.isnan(values)]
        low, high = bootstrap_mean(kept.tolist(), num_resamples=500)
        out[name] = {
            "mean": float(kept.mean()) if len(kept) else float("nan"),
            "low": low,
            "high": high,
            "n": len(kept),
        }
    leaves = ranking.first if ranking.leaves else trie.leaf_of_item[ranking.first]
    if ranking.leaves:
        out[f"coverage@{SHOWN}"] = coverage(ranking.first, trie, SHOWN)
    else:
        out[f"coverage@{SHOWN}"] = len(np.unique(ranking.first)) / trie.num_items
    out[f"diversity@{SHOWN}"] = float(np.mean([diversity(trie.path(row[row != ABSENT])) for row in leaves]))
    return out


def by_scores(parts: Sequence[tuple[NDArray[np.floating], Ints]]) -> Ranking:
    """Of a system that scores every item: chunks of (scores [u, I], target rows [u])."""
    found = [(*places_of_scores(score, target), _best(score)) for score, target in parts]
    before, size, first = (np.concatenate(column) for column in zip(*found, strict=True))
    return Ranking(before=before, size=size, first=first, leaves=False)


def _best(score: NDArray[np.floating]) -> Ints:
    """[u, SHOWN] best items, ties by row."""
    top = np.argpartition(-score, min(SHOWN, score.shape[1] - 1), axis=1)[:, :SHOWN]
    return np.take_along_axis(top, np.argsort(-np.take_along_axis(score, top, 1), axis=1, kind="stable"), 1)


def popularity(source: Sequences, cases: Sequence[Case]) -> Ranking:
    """Everyone is shown what was bought most often in training."""
    items = source.items
    counts = np.array([source.popularity[item] for item in items.item_ids], np.float64)
    targets = _targets(items, cases)
    parts = [
        (np.broadcast_to(counts, (len(part), len(counts))), part)
        for part in np.array_split(targets, -(-len(targets) // CHUNK))
    ]
    return by_scores(parts)


def sasrec(source: Sequences, cases: Sequence[Case], settings: SasRecSettings, seed: int) -> Ranking:
    """Trained here, stopped on the validation split."""
    row_of = source.items.row_of
    dev = source.cases("dev")
    model = fit(
        [[row_of[item] for item in items] for _, items in source.train_sequences],
        [[row_of[item] for item in case.history] for case in dev],
        [row_of[case.targets[0]] for case in dev],
        len(source.items.item_ids),
        settings,
        seed=seed,
        log=lambda line: print(f"  sasrec seed {seed}: {line}", file=sys.stderr, flush=True),
    )
    histories = [[row_of[item] for item in case.history] for case in cases]
    targets = _targets(source.items, cases)
    starts = range(0, len(cases), CHUNK)
    return by_scores([(scores(model, histories[at : at + CHUNK], settings), targets[at : at + CHUNK]) for at in starts])


def semantic_ids(
    source: Sequences, cases: Sequence[Case], folder: Path, weights: Path, given: argparse.Namespace
) -> Ranking:
    """A model of semantic IDs, ranked by constrained beam search."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for place in (folder, weights):
        source.check_model(place, setting="--model")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    catalogue, trie = Catalogue.of_model(folder, tokenizer.convert_tokens_to_ids)
    model: Any = AutoModelForCausalLM.from_pretrained(
        weights, dtype=getattr(torch, given.dtype), local_files_only=True
    ).eval()
    start, shown = time.perf_counter(), prompts(tokenizer, catalogue, cases)

    def progress(done: int) -> None:
        if done % 1024 < given.batch:
            print(f"  {done} of {len(cases)}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)

    ranked, _ = rank_leaves(
        model, shown, trie, width=given.beam, batch=given.batch, normalise=given.normalise, progress=progress
    )
    ties: Ties = given.ties
    before, size = places(ranked, trie.leaf_of_item[_targets(catalogue, cases)], trie, ties)
    return Ranking(before=before, size=size, first=ranked[:, :SHOWN], leaves=True)


def prompts(tokenizer: Any, catalogue: Catalogue, cases: Sequence[Case]) -> list[NDArray[np.int32]]:
    """Histories as the model reads them: one semantic ID after the other."""
    from rlkit.records import Message
    from rlkit.render import Renderer

    renderer = Renderer(tokenizer)
    texts = ("".join(catalogue.sid_texts[catalogue.row_of[item]] for item in case.history) for case in cases)
    return [renderer.prompt([Message(role="user", content=text)])[0] for text in texts]


def _targets(items: Catalogue, cases: Sequence[Case]) -> Ints:
    return np.array([items.row_of[case.targets[0]] for case in cases], np.int64)


def weights_of(folder: Path) -> Path:
    """A model's folder, a checkpoint, or a run's newest checkpoint."""
    from rlkit.checkpoint import CheckpointStore

    if (folder / "model.safetensors").is_file():
        return folder
    newest = CheckpointStore(folder).latest()
    if newest is None:
        raise SystemExit(f"error: {folder} holds neither model.safetensors nor checkpoints")
    return newest.folder


def _plain_trie(items: Catalogue) -> Trie:
    """The catalogue's trie over its own token numbers: for what needs paths but no model."""
    number = {token: index for index, token in enumerate(items.tokens)}
    return items.trie(number.get)


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown: one row per system."""
    names = list(next(iter(rows.values())))
    lines = [f"| system | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for system, found in rows.items():
        cells = [
            f"{v['mean']:.4f} [{v['low']:.4f}, {v['high']:.4f}]" if isinstance(v, dict) else f"{v:.4f}"
            for v in found.values()
        ]
        lines.append(f"| {system} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure the systems and print a table; `--out` also writes it as JSON with the machine and the settings."""
    given = _parser().parse_args()
    torch.set_num_threads(given.threads)
    names = [system.partition("=")[0] for system in given.systems]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SystemExit(f"error: {', '.join(twice)} names several systems; name each apart, as {twice[0]}_0=...")
    source = Sequences(
        Sequences.Config(path=str(given.data), dataset=given.dataset, items=given.items, max_history=given.max_history)
    )
    cases = drawn(source.cases(given.split), given.users, given.draw)
    trie = _plain_trie(source.items)
    counts = np.array([source.popularity[item] for item in source.items.item_ids])
    tail = long_tail(counts)[_targets(source.items, cases)]
    rows: dict[str, dict[str, Any]] = {}
    kept: dict[str, Floats] = {}
    for system in given.systems:
        name, _, folder = system.partition("=")
        for seed in given.seeds if system == "sasrec" else [0]:
            start = time.perf_counter()
            if system == "popularity":
                found = popularity(source, cases)
            elif system == "sasrec":
                settings = SasRecSettings(places=given.max_history, max_epochs=given.epochs, dropout=given.dropout)
                found = sasrec(source, cases, settings, seed)
            elif folder:
                weights = weights_of(Path(folder))
                found = semantic_ids(source, cases, given.model or weights, weights, given)
            else:
                raise SystemExit(f"error: '{system}' is none of popularity, sasrec, NAME=FOLDER")
            label = f"{name} (seed {seed})" if system == "sasrec" else name
            rows[label] = summary(found, tail, trie)
            kept |= {f"{label}/{measure}": values for measure, values in measures(found, tail).items()}
            print(f"{label}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    print(table(rows))
    if given.per_user:
        np.savez_compressed(given.per_user, **kept)  # type: ignore[arg-type]
    if given.out:
        facts = {key: str(value) if isinstance(value, Path) else value for key, value in vars(given).items()}
        head = {
            "settings": facts,
            "machine": machine(given.threads),
            "users": len(cases),
            "tail_users": int(tail.sum()),
        }
        given.out.write_text(json.dumps({**head, "systems": rows}, indent=1) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recommend", description=__doc__.partition("\n")[0])
    parser.add_argument("systems", nargs="+", metavar="SYSTEM", help="popularity, sasrec, NAME=FOLDER")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("RLKIT_DATA", "data"), "seqrec"))
    parser.add_argument("--dataset", default="beauty")
    parser.add_argument("--items", help="another items file, with semantic IDs of our own")
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    parser.add_argument("--users", type=int, help="first users of the split; all without it")
    parser.add_argument("--draw", type=int, metavar="SEED", help="draw --users at random: the first may be special")
    parser.add_argument("--max-history", type=int, default=20, help="latest items that are read")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of SASRec's training")
    parser.add_argument("--epochs", type=int, default=100, help="most epochs of SASRec")
    parser.add_argument("--dropout", type=float, default=0.5, help="of SASRec")
    parser.add_argument("--model", type=Path, help="folder with tokenizer and catalogue, for checkpoints")
    parser.add_argument("--beam", type=int, default=50, help="width; items outside of it count as not ranked")
    parser.add_argument("--batch", type=int, default=32, help="users of one forward")
    parser.add_argument("--normalise", choices=("trie", "vocabulary"), default="trie")
    parser.add_argument("--ties", choices=("expected", "sid"), default="expected", help="sid: as MiniOneRec counts")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--per-user", type=Path, help="write every user's numbers here (.npz)")
    parser.add_argument("--out", type=Path, help="write the table as JSON here")
    return parser


if __name__ == "__main__":
    main()
