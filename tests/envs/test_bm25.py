"""The lexical retriever."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rlkit.envs.bm25 import Bm25
from rlkit.errors import DataError
from rlkit.retriever import Passage

PASSAGES = [
    Passage(id="1", title="Velmora", text="Velmora is a town on the river Ossin."),
    Passage(id="2", title="Ossin", text="The Ossin rises at Mount Tor."),
    Passage(id="3", title="Tarek Lundvig", text="He was born in Velmora."),
]


def found(bm25: Bm25, query: str, top_k: int = 3) -> list[str]:
    [result] = asyncio.run(bm25.search([query], top_k))
    assert result.status == "ok" and len(result.scores) == len(result.passages)
    assert list(result.scores) == sorted(result.scores, reverse=True)
    return [passage.id for passage in result.passages]


def test_passages_are_found_by_title_and_text_best_first() -> None:
    bm25 = Bm25(Bm25.Config(), PASSAGES)
    assert found(bm25, "Velmora") == ["1", "3"]  # twice in the first, once in the last, never in the second
    assert found(bm25, "tarek lundvig") == ["3"]
    assert found(bm25, "Where does the Ossin rise?", top_k=1) == ["2"]


@pytest.mark.parametrize("query", ["", "the of", "zzz", "?!", "\ud800", "\x00", "a " * 5000])
def test_a_query_that_shares_no_word_finds_nothing(query: str) -> None:
    assert found(Bm25(Bm25.Config(), PASSAGES), query) == []


def test_more_passages_than_there_are_and_none_are_both_fine() -> None:
    bm25 = Bm25(Bm25.Config(), PASSAGES)
    assert len(found(bm25, "Velmora Ossin", top_k=50)) == 3
    assert found(bm25, "Velmora", top_k=0) == []


def test_a_cached_index_answers_like_the_one_that_was_built(tmp_path: Path) -> None:
    config = Bm25.Config(cache_dir=str(tmp_path / "indexes"))
    built, loaded = Bm25(config, PASSAGES), Bm25(config, PASSAGES)
    assert found(loaded, "river Ossin") == found(built, "river Ossin")
    assert len(list((tmp_path / "indexes").iterdir())) == 1


def test_another_corpus_or_setting_has_an_index_of_its_own(tmp_path: Path) -> None:
    Bm25(Bm25.Config(cache_dir=str(tmp_path)), PASSAGES)
    Bm25(Bm25.Config(cache_dir=str(tmp_path)), PASSAGES[:2])
    Bm25(Bm25.Config(cache_dir=str(tmp_path), b=0.5), PASSAGES)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_broken_cache_says_so_and_is_rebuilt_the_next_time(tmp_path: Path) -> None:
    config = Bm25.Config(cache_dir=str(tmp_path))
    Bm25(config, PASSAGES)
    [folder] = tmp_path.iterdir()
    (folder / "params.index.json").write_text("{")
    with pytest.raises(DataError, match="broken"):
        Bm25(config, PASSAGES)
    assert found(Bm25(config, PASSAGES), "tarek") == ["3"]


def test_an_empty_corpus_is_an_error() -> None:
    with pytest.raises(DataError, match="the corpus is empty"):
        Bm25(Bm25.Config(), [])


@pytest.mark.parametrize("setting", [{"k1": -1.0}, {"b": 1.5}])
def test_settings_out_of_range_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        Bm25.Config(**setting)  # type: ignore[arg-type]
