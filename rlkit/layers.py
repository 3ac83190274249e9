"""The layers of a recipe, plain and unchecked: base < recipe < command line, and where each value came from.

Merging replaces lists as a whole. A layer that changes the `kind` of a plug-in also drops the settings that
lower layers gave to the other kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from rlkit.errors import RecipeError, nearest
from rlkit.settings import join

__all__ = ["Layer", "find_recipe", "leaves", "merge", "override", "read", "shipped_recipes", "shown"]

PLUGIN_SECTIONS = ("task", "retriever", "env", "algorithm", "engine")
REWARD_COMMON = ("name", "weight", "deadline_s")
"""Keys of a reward that are the framework's, so they outlive a change of its kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Plain values and their origins."""

    values: dict[str, Any] = field(default_factory=dict)
    """Nested mappings and lists of plain YAML values; interpolations unresolved."""
    origins: dict[str, str] = field(default_factory=dict)
    """Path of each leaf, e.g. `rewards[0].weight` -> `recipes/base.yaml:12` or `command line`."""


class _Loader(yaml.SafeLoader):
    """Safe YAML in which `1e-6` is a number, and `off`, `no`, `yes` and dates are text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false|True|False)$"), list("tfTF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.inf|\.nan)$"),
    list("-+.0123456789"),
)


def shipped_recipes() -> Path:
    """The folder of the recipes that come with rlkit."""
    return Path(__file__).parent / "recipes"


def find_recipe(name: str, folder: Path | None = None, *, path: str = "") -> Path:
    """The file of a recipe: as written (relative to `folder`), else the shipped one of that name."""
    written = Path(folder or ".", name).expanduser()
    shipped = shipped_recipes() / Path(name).with_suffix(".yaml").name
    for file in (written, shipped):
        if file.is_file() and (file == written or "/" not in name):
            return file
    known = [file.stem for file in shipped_recipes().glob("*.yaml")]
    raise RecipeError(path, f"no recipe file '{written}'{nearest(name, known)}")


def read(file: Path, *, _chain: tuple[Path, ...] = ()) -> Layer:
    """A recipe file merged over its `base`, that one's base, and so on."""
    chain = (*_chain, file.resolve())
    layer = _parse(file)
    base = layer.values.pop("base", None)
    layer.origins.pop("base", None)
    if base is None:
        return layer
    if not isinstance(base, str):
        raise RecipeError("base", f"{base!r} in {shown(file)} is not the name of one file")
    below = find_recipe(base, file.parent, path="base")
    if below.resolve() in chain:
        cycle = " -> ".join(step.name for step in (*chain, below))
        raise RecipeError("base", f"recipes are based on each other: {cycle}")
    return merge(read(below, _chain=chain), layer)


def merge(below: Layer, above: Layer) -> Layer:
    """`above` wins, key by key."""
    kept = {
        section: value
        for section, value in below.values.items()
        if not (section in PLUGIN_SECTIONS and _changes_kind(value, above.values.get(section)))
    }
    values: Any = OmegaConf.to_container(OmegaConf.merge(kept, above.values))
    origins = {path: above.origins.get(path) or below.origins[path] for path, _ in leaves(values)}
    return Layer(values=values, origins=origins)


def _changes_kind(below: Any, above: Any) -> bool:
    both = isinstance(below, dict) and isinstance(above, dict)
    return both and "kind" in above and above["kind"] != below.get("kind")


def override(layer: Layer, arguments: Sequence[str]) -> Layer:
    """Apply `key=value` arguments; list items by index: `rewards.0.weight=0.5`."""
    values: Any = OmegaConf.to_container(OmegaConf.create(layer.values))  # a copy
    origins = dict(layer.origins)
    parsed = [_parse_override(argument) for argument in arguments]
    # a new kind drops the settings of the old one, so it goes before settings of the same command line
    for keys, value in sorted(parsed, key=lambda item: item[0][-1] != "kind"):
        path = _set(values, keys, value)
        for leaf, _ in leaves(value, path):
            origins[leaf] = "command line"
    return Layer(values=values, origins={path: origins[path] for path, _ in leaves(values)})


def _parse_override(argument: str) -> tuple[list[str | int], Any]:
    path, equals, text = argument.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+|\[\d+\])*", path):
        raise RecipeError("", f"'{argument}' is not key=value, for example optim.lr=1e-5 or rewards.0.weight=0.5")
    if path == "base":
        raise RecipeError("base", "cannot be set on the command line; run the recipe itself")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise RecipeError(path, f"{text!r} is not a YAML value; quote it for the shell and for YAML") from error
    return [int(part) if part.isdigit() else part for part in re.findall(r"\w+", path)], value


def _set(values: Any, keys: Sequence[str | int], value: Any) -> str:
    """Set a value deep inside; returns its path."""
    node, path = values, ""
    for position, key in enumerate(keys):
        here, path = path, join(path, key)
        if isinstance(node, list):
            if not isinstance(key, int):
                raise RecipeError(path, f"'{here}' is a list; write {here}.0.{key}")
            if key >= len(node):
                raise RecipeError(path, f"'{here}' has {len(node)}, counted from 0")
        elif not isinstance(node, dict):
            raise RecipeError(path, f"'{here}' is {node!r}, which has no settings")
        key = key if isinstance(node, list) else str(key)
        if position == len(keys) - 1:
            if key == "kind" and _changes_kind(node, {"kind": value}) and keys[0] in (*PLUGIN_SECTIONS, "rewards"):
                kept = {name: node[name] for name in REWARD_COMMON if name in node and keys[0] == "rewards"}
                node.clear()
                node.update(kept)
            node[key] = value
        else:
            if isinstance(node, dict) and node.get(key) is None:
                node[key] = {}
            node = node[key]
    return path


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every path and value that is not a filled mapping or list."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, join(path, str(key)))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from leaves(item, join(path, index))
    elif path:
        yield path, value


def _parse(file: Path) -> Layer:
    """One file, with the line of every leaf."""
    try:
        loader = _Loader(file.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        lines = dict(_lines(root)) if root is not None else {}
        values = loader.construct_document(root) if root is not None else {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{shown(file)}:{mark.line + 1}" if mark else shown(file)
        raise RecipeError("", f"{place}: {getattr(error, 'problem', None) or error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError("", f"{shown(file)}: cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError("", f"{shown(file)}: is not a mapping of sections, such as 'rollout: {{group_size: 8}}'")
    origins = {path: f"{shown(file)}:{lines[path]}" for path, _ in leaves(values)}
    return Layer(values=values, origins=origins)


def _lines(node: yaml.Node, path: str = "") -> Iterator[tuple[str, int]]:
    """(path, 1-based line) of every leaf; refuses what YAML would silently accept: a key given twice."""
    if isinstance(node, yaml.MappingNode) and node.value:
        seen: dict[str, int] = {}
        for key, item in node.value:
            problem = ""
            if not key.tag.endswith(":str"):
                name = getattr(key, "value", "?")
                problem = f"the key {name!r} is not text; quote it (and '<<' is not supported)"
            elif key.value in seen:
                problem = f"'{join(path, key.value)}' is given twice, first in line {seen[key.value]}"
            if problem:
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen[key.value] = key.start_mark.line + 1
            yield from _lines(item, join(path, key.value))
    elif isinstance(node, yaml.SequenceNode) and node.value:
        for index, item in enumerate(node.value):
            yield from _lines(item, join(path, index))
    else:
        yield path, node.start_mark.line + 1


def shown(file: Path) -> str:
    """Relative to the working folder where it lies inside."""
    absolute, here = file.resolve(), Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else file)
