"""Texts as unit vectors: latent semantic analysis fitted to the corpus, or a sentence-embedding model in a folder.

Nothing is pickled: what is fitted is arrays, and the words are hashed, so there is no vocabulary to keep.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from rlkit.errors import DataError
from rlkit.settings import at_least

__all__ = ["Embedder", "EmbedderSettings", "Lsa", "SentenceModel", "make_embedder"]

Vectors = NDArray[np.float32]
Progress = Callable[[int, int], None]
"""`(done, all)` texts."""


@dataclass(frozen=True, kw_only=True)
class EmbedderSettings:
    """How texts become vectors."""

    kind: Literal["lsa", "model"] = "lsa"
    """`lsa`: TF-IDF and a truncated SVD of this corpus; `model`: a transformer in the folder `path`."""
    dim: int = 256
    """Dimensions of `lsa`; a model has its own."""
    features: int = 65536
    """Hash buckets of `lsa`."""
    path: str = ""
    """Folder in the sentence-transformers or transformers format, with safetensors weights."""
    max_tokens: int = 256
    """Tokens of a text that a model reads."""
    query_prefix: str = ""
    """Put before queries, where the model was trained with one (BGE, E5)."""

    def __post_init__(self) -> None:
        at_least(self, 2, "dim", "features", "max_tokens")
        if self.kind == "model" and not Path(self.path).expanduser().is_dir():
            raise ValueError(f"path: no folder '{self.path}'; kind=model needs one")


class Embedder(Protocol):
    """Texts -> unit vectors [N, dim]."""

    def fit(self, texts: Sequence[str]) -> None:
        """Learn from the corpus what there is to learn."""
        ...

    def embed(self, texts: Sequence[str], progress: Progress | None = None) -> Vectors:
        """One row per text; zeros for a text without a known word."""
        ...

    def save(self, folder: Path) -> None:
        """Keep what was fitted."""
        ...

    def open(self, folder: Path) -> None:
        """Take up what was kept, memory-mapped."""
        ...

    def fingerprint(self) -> str:
        """Of everything that shapes the vectors but the corpus."""
        ...


def make_embedder(settings: EmbedderSettings) -> Embedder:
    """The embedder that the settings name."""
    return Lsa(settings) if settings.kind == "lsa" else SentenceModel(settings)


class Lsa:
    """Deerwester et al. 1990 over hashed words, with sublinear counts and smoothed inverse document frequencies."""

    def __init__(self, settings: EmbedderSettings) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer

        self.settings = settings
        self._words: Any = HashingVectorizer(
            n_features=settings.features, alternate_sign=False, norm=None, stop_words="english"
        )
        self._idf: NDArray[Any] = np.zeros(0)
        self._components: NDArray[Any] = np.zeros((0, 0))

    def fit(self, texts: Sequence[str]) -> None:
        """Document frequencies and the leading right singular vectors; the same corpus gives the same."""
        from sklearn.decomposition import TruncatedSVD

        counts = self._counts(texts)
        frequency = np.bincount(counts.indices, minlength=self.settings.features)
        self._idf = (np.log((1 + len(texts)) / (1 + frequency)) + 1).astype(np.float32)
        rank = min(self.settings.dim, len(texts) - 1, self.settings.features - 1)
        if rank < 1:
            raise DataError(f"retriever: {len(texts)} passages are too few for kind=lsa")
        svd = TruncatedSVD(rank, random_state=0, n_iter=4).fit(self._weighted(counts))
        self._components = svd.components_.astype(np.float32)

    def embed(self, texts: Sequence[str], progress: Progress | None = None) -> Vectors:
        """Project on the singular vectors and scale to length 1."""
        if not texts:
            return np.zeros((0, len(self._components)), np.float32)
        vectors = np.asarray(self._weighted(self._counts(texts)) @ self._components.T, dtype=np.float32)
        if progress:
            progress(len(texts), len(texts))
        return _unit(vectors)

    def save(self, folder: Path) -> None:
        """Two arrays."""
        np.save(folder / "idf.npy", self._idf)
        np.save(folder / "components.npy", self._components)

    def open(self, folder: Path) -> None:
        """Two memory-mapped arrays."""
        self._idf = np.load(folder / "idf.npy", mmap_mode="r", allow_pickle=False)
        self._components = np.load(folder / "components.npy", mmap_mode="r", allow_pickle=False)

    def fingerprint(self) -> str:
        """Its settings."""
        return f"lsa-{self.settings.dim}-{self.settings.features}"

    def _counts(self, texts: Sequence[str]) -> Any:
        counts = self._words.transform(text.encode("utf-8", "replace").decode("utf-8") for text in texts)
        counts.sum_duplicates()
        counts.data = 1 + np.log(counts.data)
        return counts

    def _weighted(self, counts: Any) -> Any:
        from sklearn.preprocessing import normalize

        return normalize(counts.multiply(self._idf).tocsr().astype(np.float32))


class SentenceModel:
    """A transformer whose token states are averaged, or whose first is taken, as `1_Pooling/config.json` says."""

    def __init__(self, settings: EmbedderSettings) -> None:
        self.settings = settings
        self.folder = Path(settings.path).expanduser()
        self._loaded: tuple[Any, Any] | None = None

    def fit(self, texts: Sequence[str]) -> None:
        """Nothing: it was trained elsewhere."""

    def embed(self, texts: Sequence[str], progress: Progress | None = None, batch: int = 32) -> Vectors:
        """In batches of texts of similar length."""
        import torch

        tokenizer, model = self._load()
        order = np.argsort([len(text) for text in texts], kind="stable")
        rows: list[Vectors] = [np.zeros(0, np.float32)] * len(texts)
        for start in range(0, len(texts), batch):
            chosen = order[start : start + batch]
            inputs = tokenizer(
                [texts[i] for i in chosen],
                padding=True,
                truncation=True,
                max_length=self.settings.max_tokens,
                return_tensors="pt",
            )
            with torch.inference_mode():
                states = model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"].unsqueeze(-1).float()
            pooled = states[:, 0] if self._takes_first() else (states * mask).sum(1) / mask.sum(1)
            for index, row in zip(chosen, _unit(pooled.numpy()), strict=True):
                rows[index] = row
            if progress:
                progress(min(start + batch, len(texts)), len(texts))
        return np.stack(rows) if rows else np.zeros((0, int(model.config.hidden_size)), np.float32)

    def save(self, folder: Path) -> None:
        """Nothing: the model stays where it is."""

    def open(self, folder: Path) -> None:
        """Nothing."""

    def fingerprint(self) -> str:
        """Of configuration, settings and the first MiB of each weight file."""
        digest = hashlib.blake2b(digest_size=8)
        for name in ("config.json", "tokenizer.json", "1_Pooling/config.json"):
            if (self.folder / name).is_file():
                digest.update((self.folder / name).read_bytes())
        for weights in sorted(self.folder.glob("*.safetensors")):
            with weights.open("rb") as file:
                digest.update(f"{weights.name}{weights.stat().st_size}".encode() + file.read(1 << 20))
        return f"model-{digest.hexdigest()}-{self.settings.max_tokens}"

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from transformers import AutoModel, AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
            model = AutoModel.from_pretrained(self.folder, local_files_only=True, use_safetensors=True).eval()
            self._loaded = tokenizer, model
        return self._loaded

    def _takes_first(self) -> bool:
        pooling = self.folder / "1_Pooling" / "config.json"
        return pooling.is_file() and '"pooling_mode_cls_token": true' in pooling.read_text(encoding="utf-8")


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 1e-12)
