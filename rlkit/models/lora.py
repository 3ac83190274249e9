"""Low-rank adapters on a frozen model (LoRA, Hu et al. 2021, arXiv:2106.09685), put in by peft.

    y = W x + alpha / rank · B A x        A [rank, in] random, B [out, rank] zero: at the start nothing changes

Only A and B are trained, saved and sent to engines, which run them beside the same frozen weights: nothing is merged,
so learner and engine compute alike. What is frozen never travels; a digest of it does, and an engine on another base
refuses. Dropout inside the adapters is left out: the loss must score the distribution that sampled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rlkit.errors import CheckpointError, RecipeError, nearest
from rlkit.models.value_head import VALUE_PREFIX
from rlkit.recipe import LoraSettings

__all__ = [
    "ADAPTER_FILE",
    "BASE",
    "add_adapters",
    "frozen_digest",
    "has_adapters",
    "merge_adapters",
    "read_adapters",
    "save_adapters",
    "settings_of",
    "travelling",
    "without_adapters",
]

ADAPTER_FILE = "adapter_model.safetensors"
"""What a checkpoint holds in place of a model's weights; peft reads it, with `adapter_config.json` beside it."""
CONFIG_FILE = "adapter_config.json"
BASE = "frozen_digest"
"""Buffer of a model with adapters: 16 bytes that tell its frozen weights from others."""
NAME, PREFIX = "default", "base_model.model."
"""peft's name of the only adapter, which its files leave out, and what they put before every weight's name."""


def add_adapters(model: Any, lora: LoraSettings, *, dtype: torch.dtype | None = None) -> None:
    """Freeze `model` and put fresh adapters into it, in `dtype` or the model's, always the same; rank 0: do nothing.

    Goes before a value head, whose layers are trained whole. Raises `RecipeError` for targets that it has not.
    """
    if not lora.rank:
        return
    from peft import inject_adapter_in_model  # a second of imports, only where they are used

    linear = _linear(model)
    names = sorted({name.rpartition(".")[2] for name in linear})
    for target in lora.targets:
        if target not in names:
            raise RecipeError(
                "model.lora.targets", f"'{target}' is no linear layer of the model{nearest(target, names)}"
            )
    digest = frozen_digest(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inject_adapter_in_model(_config(lora, lora.targets or names), model)
    for layer in _layers(model):
        layer.lora_A.to(dtype or model.dtype)
        layer.lora_B.to(dtype or model.dtype)
    model.register_buffer(BASE, digest)


def _config(lora: LoraSettings, targets: Any) -> Any:
    from peft import LoraConfig

    alpha: Any = lora.scale * lora.rank  # peft's annotation says int; it divides by the rank
    return LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules=list(targets), task_type="CAUSAL_LM")


def _linear(model: Any) -> list[str]:
    """Names of the linear layers, without the output head, which is often the embedding too."""
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]


def _layers(model: Any) -> Iterator[Any]:
    from peft.tuners.lora import LoraLayer

    return (module for module in model.modules() if isinstance(module, LoraLayer))


def has_adapters(model: Any) -> bool:
    """Whether `add_adapters` put some in."""
    return hasattr(model, BASE)


def frozen_digest(model: Any) -> Tensor:
    """[16] uint8, equal exactly where all weights have the same names, shapes, dtypes and bytes."""

    def of(item: tuple[str, Tensor]) -> bytes:
        name, weight = item
        content = hashlib.blake2b(f"{name} {weight.dtype} {tuple(weight.shape)}".encode(), digest_size=16)
        content.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return content.digest()

    with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter lock
        whole = hashlib.blake2b(b"".join(pool.map(of, model.named_parameters())), digest_size=16)
    return torch.tensor(list(whole.digest()), dtype=torch.uint8)


def travelling(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a model's state that a learner sends: adapters, value head and digest; all of it without adapters."""
    if BASE not in state:
        return dict(state)
    return {n: w for n, w in state.items() if n == BASE or n.startswith(VALUE_PREFIX) or _is_adapter(n)}


def _is_adapter(name: str) -> bool:
    return name.endswith((f".lora_A.{NAME}.weight", f".lora_B.{NAME}.weight"))


@contextmanager
def without_adapters(model: Any) -> Iterator[None]:
    """Inside, the model computes what it did before it had adapters: a reference without a second copy."""
    layers = list(_layers(model))
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merge_adapters(model: Any) -> None:
    """Add B A to the frozen weights and take the adapters out: a plain model again, all of it trainable."""
    for name, module in list(model.named_modules()):
        if module in set(_layers(model)):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    delattr(model, BASE)
    del model.peft_config
    model.requires_grad_(True)


def save_adapters(weights: Mapping[str, Tensor], model: Any, folder: Path) -> None:
    """Write adapters by the model's names, the digest of their base, and peft's configuration into `folder`."""
    config = model.peft_config[NAME]
    whole = {PREFIX + name.replace(f".{NAME}.", "."): w.contiguous() for name, w in weights.items()}
    save_file(whole, folder / ADAPTER_FILE, metadata={BASE: _hex(model), "format": "pt"})
    config.save_pretrained(folder)
    model.config.save_pretrained(folder)


def read_adapters(folder: Path, model: Any, *, same_base: bool = False) -> dict[str, Tensor]:
    """Adapters of a folder, by the model's names. Raises `CheckpointError` for those of other settings.

    `same_base` refuses adapters that were trained on other frozen weights, or on the same in another dtype.
    """
    own = {name: weight for name, weight in model.named_parameters() if _is_adapter(name)}
    with safe_open(folder / ADAPTER_FILE, "pt") as file:
        base = (file.metadata() or {}).get(BASE)
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if same_base and base != _hex(model):
        raise CheckpointError(f"{folder}: its adapters were trained on other frozen weights than those of model.path")
    named = {_full_name(name): weight for name, weight in found.items()}
    if {n: tuple(w.shape) for n, w in named.items()} != {n: tuple(w.shape) for n, w in own.items()}:
        has, wanted = settings_of(folder), model.peft_config[NAME]
        raise CheckpointError(
            f"model.lora: {folder} holds adapters of rank {has.rank} on {', '.join(has.targets)}; "
            f"the recipe asks for rank {wanted.r} on {', '.join(sorted(wanted.target_modules))}"
        )
    return named


def _full_name(name: str) -> str:
    stem, _, end = name.removeprefix(PREFIX).rpartition(".")
    return f"{stem}.{NAME}.{end}"


def _hex(model: Any) -> str:
    return bytes(getattr(model, BASE).tolist()).hex()


def settings_of(folder: Path) -> LoraSettings:
    """Rank, strength and targets of a folder's adapters. Raises `CheckpointError` where they cannot be read."""
    file = folder / CONFIG_FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        targets = tuple(sorted(found["target_modules"]))
        return LoraSettings(rank=found["r"], alpha=float(found["lora_alpha"]), targets=targets)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: no configuration of adapters that rlkit can read ({error})") from error
