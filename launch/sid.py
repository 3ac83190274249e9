"""Semantic IDs from the command line: a model for a catalogue, text embeddings, and semantic IDs of our own.

    python -m rlkit.launch.sid model ITEMS OUT          a small model of the catalogue, or --base with its tokens added
    python -m rlkit.launch.sid embed ITEMS OUT          text embeddings of the items (OUT.safetensors)
    python -m rlkit.launch.sid tokenize ITEMS VECTORS OUT    the same items with semantic IDs made from embeddings

ITEMS is an `items.jsonl.gz`. Every command prints what it made.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rlkit.catalogue.items import Catalogue
from rlkit.errors import RlkitError
from rlkit.models.pretrained import OFFLINE

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 1 and a message where it fails."""
    import os

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
    return parser


if __name__ == "__main__":
    sys.exit(main())
