"""Plug-ins: what `kind` names, where it lives, and the settings that it takes.

A kind is a short name of the table below, `package.module:Name`, or `folder/file.py:name` relative to the
recipe. The tables hold strings, so listing imports nothing; a plug-in is imported when a recipe names it.

Settings are typed by the plug-in itself: a frozen dataclass `Config` on a class (`config` on an `Algorithm`),
or the keyword-only parameters of a reward function.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_type_hints

from rlkit.errors import RecipeError, nearest

__all__ = [
    "TABLES",
    "Description",
    "Family",
    "NoSettings",
    "PluginSection",
    "config_of",
    "describe",
    "load_object",
    "resolve",
]

Family = Literal["tasks", "retrievers", "envs", "rewards", "engines", "algorithms"]

TABLES: dict[Family, dict[str, str]] = {
    "tasks": {
        "world": "rlkit.data.world:World",
        "multihop": "rlkit.data.multihop:Multihop",
        "docs_qa": "rlkit.data.docs_qa:DocsQa",
        "sequences": "rlkit.data.sequences:Sequences",
    },
    "retrievers": {
        "bm25": "rlkit.envs.bm25:Bm25",
        "hybrid": "rlkit.retrieval.hybrid:Hybrid",
    },
    "envs": {
        "agentic_search": "rlkit.envs.agentic_search:AgenticSearch",
        "qa_retrieval": "rlkit.envs.qa_retrieval:QaRetrieval",
        "sid_generation": "rlkit.envs.sid_generation:SidGeneration",
    },
    "rewards": {
        "exact_match": "rlkit.rewards.text_match:exact_match",
        "containment": "rlkit.rewards.text_match:containment",
        "f1": "rlkit.rewards.text_match:f1",
        "format": "rlkit.rewards.format:format_reward",
        "sid_match": "rlkit.rewards.sid_match:sid_match",
        "sid_prefix": "rlkit.rewards.sid_prefix:sid_prefix",
        "ranking": "rlkit.rewards.ranking:ranking",
        "rank_penalty": "rlkit.rewards.ranking:rank_penalty",
        "search_p1": "rlkit.rewards.search_p1:search_p1",
        "path_centric": "rlkit.rewards.path_centric:path_centric",
        "soft_outcome": "rlkit.rewards.soft_outcome:soft_outcome",
        "search_format": "rlkit.rewards.search_format:search_format",
        "evidence_agreement": "rlkit.rewards.evidence_agreement:evidence_agreement",
        "url_validity": "rlkit.rewards.url_validity:url_validity",
        "faithfulness": "rlkit.rewards.faithfulness:faithfulness",
        "answer_accuracy": "rlkit.rewards.answer_accuracy:answer_accuracy",
        "style": "rlkit.rewards.style:style",
        "safety": "rlkit.rewards.safety:safety",
    },
    "engines": {
        "hf": "rlkit.policy.hf:HfEngine",
        "vllm": "rlkit.policy.vllm:VllmEngine",
        "fake": "rlkit.policy.fake:FakeEngine",
        "demonstration": "rlkit.policy.demonstration:DemonstrationEngine",
        "answers": "rlkit.policy.answers:AnswerEngine",
        "trie": "rlkit.policy.trie_engine:TrieEngine",
    },
    "algorithms": {
        kind: f"rlkit.algorithms.{kind}:ALGORITHM"
        for kind in (
            "grpo",
            "dr_grpo",
            "dapo",
            "gspo",
            "cispo",
            "rloo",
            "reinforce_pp",
            "sibling_grpo",
            "turn_grpo",
            "sft",
        )
    },
}
"""Short name -> `module:attribute`, one table per family. A new plug-in of this repository adds one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoSettings:
    """Settings of a plug-in that takes none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginSection:
    """One `{kind: ..., settings...}` section of a recipe, checked."""

    family: Family
    """Table that `kind` was looked up in."""
    kind: str
    """As the recipe writes it."""
    spec: str
    """What it resolved to: `module:attribute`, or `/folder/file.py:attribute`."""
    folder: str
    """Folder of the recipe; `file.py:name` is relative to it."""
    settings: Any
    """Instance of the plug-in's own frozen config dataclass."""

    def load(self) -> Any:
        """The plug-in itself: a class, a reward function or an `Algorithm`."""
        return load_object(self.spec)

    @property
    def keywords(self) -> dict[str, Any]:
        """The settings by name, as keyword arguments of a reward function."""
        return {f.name: getattr(self.settings, f.name) for f in dataclasses.fields(self.settings)}

    @property
    def portable_kind(self) -> str:
        """The kind as a recipe elsewhere would write it: a file is spelled from the working folder."""
        if not self.spec.rpartition(":")[0].endswith(".py"):
            return self.kind
        here = f"{Path.cwd()}{os.sep}"
        return self.spec.removeprefix(here)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel by name: another process looks the plug-in up in its own copy of the working folder."""
        folders = (self.folder, os.path.relpath(self.folder))
        return _rebuild, (self.family, self.kind, folders, self.keywords)


def _rebuild(family: Family, kind: str, folders: tuple[str, ...], settings: dict[str, Any]) -> PluginSection:
    spec = resolve(family, kind, folders)
    config = config_of(load_object(spec))
    return PluginSection(family=family, kind=kind, spec=spec, folder=folders[0], settings=config(**settings))


def resolve(family: Family, kind: str, folders: Sequence[str | Path] = (), *, path: str = "kind") -> str:
    """The import string or file that `kind` stands for; imports nothing. An error names `path`."""
    table = TABLES[family]
    if kind in table:
        return table[kind]
    source, colon, attribute = kind.rpartition(":")
    if not colon:
        if kind.endswith(".py"):
            raise RecipeError(path, f"'{kind}' names a file but nothing in it; write '{kind}:name'")
        raise RecipeError(path, f"unknown {kind!r}{nearest(kind, table)}")
    if not attribute.isidentifier():
        raise RecipeError(path, f"{kind!r} is neither 'module:name' nor 'file.py:name'")
    if not source.endswith(".py"):
        if not all(part.isidentifier() for part in source.split(".")):
            raise RecipeError(path, f"{source!r} of {kind!r} is neither a module nor a file.py")
        return kind
    for folder in (*folders, "."):
        file = Path(folder, source).expanduser()
        if file.is_file():
            return f"{file.resolve()}:{attribute}"
    looked = ", ".join(dict.fromkeys(str(Path(folder).resolve()) for folder in (*folders, ".")))
    raise RecipeError(path, f"no file {source!r} in {looked}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """One line of `rlkit list`."""

    kind: str
    """Short name."""
    summary: str
    """First line of the docstring; empty where there is none."""
    spec: str
    """Where it lives, as `module:attribute`."""


def describe(family: Family) -> list[Description]:
    """The plug-ins of a family, read from their source: nothing is imported."""
    return [
        Description(kind=kind, summary=_summary(*spec.split(":")), spec=spec) for kind, spec in TABLES[family].items()
    ]


def _summary(module: str, attribute: str) -> str:
    """First docstring line of a function, or of the module, which is about its one class or `ALGORITHM`."""
    file = Path(__file__).parent.parent.joinpath(*module.split(".")).with_suffix(".py")
    if not file.is_file():
        return ""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == attribute)
    return (ast.get_docstring(next(functions, tree)) or "").partition("\n")[0]


def load_object(spec: str, *, path: str = "kind") -> Any:
    """Import what `resolve` returned."""
    source, _, attribute = spec.rpartition(":")
    try:
        module = _load_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except Exception as error:  # a plug-in's module may fail in any way; all of them are the recipe's problem
        raise RecipeError(path, f"cannot import '{source}': {type(error).__name__}: {error}") from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        public = [name for name in vars(module) if not name.startswith("_")]
        raise RecipeError(path, f"'{source}' has no {attribute!r}{nearest(attribute, public)}") from None


def _load_file(file: Path) -> ModuleType:
    """Import a file under a name made from its path, so the same file is one module, in every process."""
    name = f"rlkit_plugin_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    module_spec = importlib.util.spec_from_file_location(name, file)
    assert module_spec is not None and module_spec.loader is not None  # true of every path that ends in .py
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # before it runs: dataclasses look their own module up
    try:
        module_spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def config_of(plugin: Any, *, path: str = "kind") -> type:
    """The dataclass of a plug-in's settings; made from keyword-only parameters if it is a function."""
    declared = getattr(plugin, "Config", None) or getattr(plugin, "config", None)
    if declared is not None:
        if not (isinstance(declared, type) and dataclasses.is_dataclass(declared)):
            raise RecipeError(path, f"{_name(plugin)}.Config is not a dataclass")
        return declared
    if not callable(plugin):
        raise RecipeError(path, f"{_name(plugin)} is not callable")
    try:
        return _config_of_function(plugin) if inspect.isfunction(plugin) else NoSettings
    except NameError as error:
        raise RecipeError(path, f"an annotation of {_name(plugin)} does not exist: {error}") from error


@cache  # one class per function, so that equal settings compare equal
def _config_of_function(function: Callable[..., Any]) -> type:
    hints = get_type_hints(function)
    fields: list[Any] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        annotation = hints.get(parameter.name, Any)
        if parameter.default is parameter.empty:
            fields.append((parameter.name, annotation))
        else:  # a factory, because dataclasses refuse mutable defaults that a function may well have
            default = dataclasses.field(default_factory=partial(copy, parameter.default))
            fields.append((parameter.name, annotation, default))
    return dataclasses.make_dataclass(f"{function.__name__}_settings", fields, frozen=True, kw_only=True)


def _name(plugin: Any) -> str:
    return str(getattr(plugin, "__name__", repr(plugin)))
