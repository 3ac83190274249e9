"""Embedding models and cross-encoders read from a folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rlkit.retrieval.embed import EmbedderSettings, SentenceModel
from rlkit.retrieval.rerank import CrossEncoder, RerankSettings
from tests.retrieval.models import write_encoder
from tests.retrieval.test_hybrid import found, hybrid

TEXTS = ["daily budget", "who pays the bid", "page"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


def embedder(folder: Path, **settings: object) -> SentenceModel:
    return SentenceModel(EmbedderSettings(kind="model", path=str(folder), **settings))  # type: ignore[arg-type]


def test_vectors_have_length_one_and_do_not_depend_on_their_batch(encoder: Path) -> None:
    model = embedder(encoder)
    rows = model.embed(TEXTS)
    assert rows.shape == (3, 16)
    assert np.linalg.norm(rows, axis=1) == pytest.approx([1, 1, 1], abs=1e-6)
    alone = np.stack([model.embed([text])[0] for text in TEXTS])
    assert rows == pytest.approx(alone, abs=1e-5)  # padding is not averaged
    assert model.embed(TEXTS, batch=2) == pytest.approx(rows, abs=1e-5)


def test_the_folder_says_whether_the_first_token_or_the_mean_speaks(encoder: Path, tmp_path: Path) -> None:
    first = write_encoder(tmp_path / "first")
    (first / "1_Pooling").mkdir()
    (first / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    assert not np.allclose(embedder(first).embed(TEXTS), embedder(encoder).embed(TEXTS))
    assert embedder(first).fingerprint() != embedder(encoder).fingerprint()
    assert embedder(encoder).fingerprint() == embedder(encoder).fingerprint()
    assert embedder(encoder, max_tokens=8).fingerprint() != embedder(encoder).fingerprint()


def test_long_texts_are_cut_at_the_models_room(encoder: Path) -> None:
    model = embedder(encoder, max_tokens=4)
    assert model.embed(["daily budget " * 99]) == pytest.approx(model.embed(["daily budget daily budget"]), abs=1e-6)


def test_a_cross_encoder_reads_question_and_passage_together(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "cross", labels=("irrelevant", "relevant"))
    encoder = CrossEncoder(RerankSettings(kind="model", path=str(folder)))
    scores = encoder.scores("daily budget", TEXTS)
    assert len(set(scores)) == 3
    assert encoder.scores("daily budget", TEXTS[::-1]) == pytest.approx(scores[::-1], abs=1e-5)
    assert encoder.scores("who pays", TEXTS) != pytest.approx(scores)


def test_the_hybrid_retriever_runs_with_both_models(encoder: Path, tmp_path: Path) -> None:
    cross = write_encoder(tmp_path / "cross", labels=("score",))
    settings = EmbedderSettings(kind="model", path=str(encoder), max_tokens=32)
    rerank = RerankSettings(kind="model", path=str(cross), max_tokens=48)
    retriever = hybrid(tmp_path, embedder=settings, rerank=rerank)
    assert len(found(retriever, "Who does the editorial review?", 3)) == 3
    assert retriever.counts["rerank_failed"] == retriever.counts["dense_failed"] == 0
