"""From a recipe file and `key=value` overrides to a checked `Recipe`, before anything heavy starts.

Whatever is wrong is a `RecipeError` with the setting's full path, its value, what is allowed and the nearest
fix: `rollout.group_sise: unknown setting; did you mean 'group_size'?`. Cheap checks come first; plug-ins are
imported last, because engines and algorithms bring torch along.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlkit import layers
from rlkit.combinations import check, doubts
from rlkit.errors import RecipeError, nearest
from rlkit.plugins import TABLES, Family, PluginSection, config_of, load_object, resolve
from rlkit.recipe import SECTIONS, Recipe, RewardCommon, RewardSection, Run
from rlkit.settings import build, join

__all__ = ["Resolved", "load"]

PLUGINS: dict[str, Family] = {
    "task": "tasks",
    "retriever": "retrievers",
    "env": "envs",
    "algorithm": "algorithms",
    "engine": "engines",
}
DEFAULTS: dict[str, dict[str, Any] | None] = {"retriever": None, "engine": {"kind": "hf"}}
"""Plug-in sections that a recipe may leave out."""
RUN = tuple(field.name for field in dataclasses.fields(Run))
"""Settings outside any section."""
SECRET = re.compile(r"(?:^|_)(?:token|secret|password|api_?key|credentials?)$", re.IGNORECASE)
"""Names of settings whose value is never printed or saved; `row_tokens` is not one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A checked recipe and where its values came from."""

    recipe: Recipe
    """What to run."""
    origins: Mapping[str, str]
    """Path of each value, e.g. `rewards[0].weight` -> `default`, `recipes/base.yaml:12` or `command line`."""
    path: Path
    """The recipe's file."""
    warnings: tuple[str, ...] = ()
    """What will run, but probably not as hoped."""

    @property
    def values(self) -> dict[str, Any]:
        """All values in the shape of the YAML; secrets are masked."""
        values: dict[str, Any] = _plain(self.recipe)
        return values

    def save_resolved(self, path: Path) -> None:
        """Write every value, defaults included, as a recipe that runs again."""
        text = yaml.safe_dump(self.values, sort_keys=False, allow_unicode=True, width=120)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/usr/bin/env -S python -m rlkit\n{text}", encoding="utf-8")


def load(path: str | Path, overrides: Sequence[str] = ()) -> Resolved:
    """Read, merge and check a recipe: a file, or the name of one that comes with rlkit."""
    file = layers.find_recipe(str(path))
    layer = layers.override(layers.read(file), overrides)
    _check_shape(layer.values)
    values = _interpolated({"name": file.stem, "out": "runs/${name}", **layer.values})
    run = build(Run, {key: values[key] for key in RUN if key in values}, "")
    sections: dict[str, Any] = {name: build(cls, values.get(name) or {}, name) for name, cls in SECTIONS.items()}
    plugins = _plugins(values, str(file.resolve().parent))
    recipe = Recipe(**dataclasses.asdict(run), **sections, **plugins)
    check(recipe)
    origins = {leaf: layer.origins.get(leaf, "default") for leaf, _ in layers.leaves(_plain(recipe))}
    return Resolved(recipe=recipe, origins=origins, path=file, warnings=tuple(doubts(recipe)))


def _interpolated(values: dict[str, Any]) -> dict[str, Any]:
    """Fill in `${name}`, `${oc.env:HOME,default}` and `${rollout.group_size}`, defaults included."""
    written = [(path, value) for path, value in layers.leaves(values) if isinstance(value, str) and "${" in value]
    defaults = {name: dataclasses.asdict(cls()) for name, cls in SECTIONS.items()}
    for path, value in written:  # the grammar first: merging would not say which one is wrong
        with _filling(path):
            OmegaConf.create({"value": value})
    merged = OmegaConf.merge(defaults, values)
    for path, _ in written:
        with _filling(path):
            OmegaConf.select(merged, path)
    resolved: Any = OmegaConf.to_container(merged, resolve=True)
    return {key: resolved[key] for key in values}


@contextmanager
def _filling(path: str) -> Iterator[None]:
    try:
        yield
    except OmegaConfBaseException as error:
        raise RecipeError(path, f"cannot fill in an interpolation: {str(error).splitlines()[0]}") from error


def _check_shape(values: Mapping[str, Any]) -> None:
    """Sections are mappings, rewards a list of mappings, and nothing else stands at the top."""
    known = (*RUN, "base", "rewards", *PLUGINS, *SECTIONS)
    for key, value in values.items():
        if key not in known:
            raise RecipeError(key, f"unknown section{nearest(key, known)}")
        if key in (*SECTIONS, *PLUGINS) and not isinstance(value, dict | None):
            example = f"{{kind: {value}}}" if key in PLUGINS else "{setting: value}"
            raise RecipeError(key, f"{value!r} is not a mapping; write {key}: {example}")
    rewards = values.get("rewards")
    if not isinstance(rewards, list) or not rewards:
        problem = f"{rewards!r} is not a list of rewards" if rewards else "missing"
        raise RecipeError("rewards", f"{problem}; write rewards: [{{kind: exact_match}}]")
    for index, reward in enumerate(rewards):
        if not isinstance(reward, dict):
            raise RecipeError(join("rewards", index), f"{reward!r} is not a mapping; write {{kind: {reward}}}")


def _plugins(values: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """The plug-in sections and rewards; every kind is looked up before the first one is imported."""
    sections: dict[str, tuple[Family, dict[str, Any]]] = {}
    for name, family in PLUGINS.items():
        section = values[name] if values.get(name) is not None else DEFAULTS.get(name, {})
        if section is not None:
            sections[name] = (family, section)
    for index, reward in enumerate(values["rewards"]):
        own = {key: value for key, value in reward.items() if key not in layers.REWARD_COMMON}
        sections[join("rewards", index)] = ("rewards", own)
    specs = {path: _find(family, section, folder, path) for path, (family, section) in sections.items()}

    light_first = sorted(sections, key=lambda path: path in ("engine", "algorithm"))
    loaded = {path: _load(*sections[path], specs[path], folder, path) for path in light_first}
    rewards = tuple(
        _reward(reward, loaded[join("rewards", index)], index) for index, reward in enumerate(values["rewards"])
    )
    return {"rewards": rewards, **{name: loaded.get(name) for name in PLUGINS}}


def _find(family: Family, section: Mapping[str, Any], folder: str, path: str) -> str:
    kind = section.get("kind")
    if not isinstance(kind, str):
        problem = "missing" if kind is None else f"{kind!r} is not a name"
        raise RecipeError(f"{path}.kind", f"{problem}{nearest('', TABLES[family])}")
    return resolve(family, kind, [folder], path=f"{path}.kind")


def _load(family: Family, section: Mapping[str, Any], spec: str, folder: str, path: str) -> PluginSection:
    plugin = load_object(spec, path=f"{path}.kind")
    if family == "algorithms" and not hasattr(plugin, "credit"):
        raise RecipeError(f"{path}.kind", f"{spec!r} is no Algorithm; name a module's ALGORITHM")
    config = config_of(plugin, path=f"{path}.kind")
    taken = {"kind", *(layers.REWARD_COMMON if family == "rewards" else ())}
    for field in dataclasses.fields(config):
        if field.name in taken:
            raise RecipeError(f"{path}.kind", f"{spec!r} has a setting '{field.name}', which is rlkit's own; rename it")
    own = {key: value for key, value in section.items() if key != "kind"}
    settings: Any = build(config, own, path)
    return PluginSection(family=family, kind=section["kind"], spec=spec, folder=folder, settings=settings)


def _reward(section: Mapping[str, Any], plugin: PluginSection, index: int) -> RewardSection:
    common = {key: section[key] for key in layers.REWARD_COMMON if key in section}
    common.setdefault("name", plugin.spec.rpartition(":")[2] if ":" in plugin.kind else plugin.kind)
    checked = build(RewardCommon, common, join("rewards", index))
    return RewardSection(name=checked.name, weight=checked.weight, deadline_s=checked.deadline_s, plugin=plugin)


def _plain(value: Any, name: str = "") -> Any:
    """Records as plain YAML values; a plug-in's settings stand beside its `kind`, as in a recipe."""
    if value and SECRET.search(name):
        return "***"
    if isinstance(value, PluginSection):
        return {"kind": value.portable_kind, **_plain(value.settings)}
    if isinstance(value, RewardSection):
        plugin = _plain(value.plugin)
        own = {key: getattr(value, key) for key in layers.REWARD_COMMON}
        return {"kind": plugin.pop("kind"), **own, **plugin}
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name), field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)
