"""Every mistake is one message: the setting's full path, its value, what is allowed or the nearest fix."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rlkit.config import load
from rlkit.errors import RecipeError
from rlkit.plugins import TABLES
from tests.plugin_files import RECIPE, user_folder

TASKS, ENVS = (", ".join(sorted(TABLES[family])) for family in ("tasks", "envs"))
"""What a message offers: every plug-in of the family."""

BROKEN_OVERRIDES = {
    "cluster.sync_over=nccl": "cluster.sync_over: nccl needs a GPU of its own for every process; "
    "gpus_per_rollout_worker is 0, gpus_per_learner_rank 0; gloo does not",
    "cluster.sync_changes=true": "cluster.sync_changes: true, but in shared memory nothing is sent; "
    "with sync_over store, gloo or nccl",
    # names
    "rollout.group_sise=4": "rollout.group_sise: unknown setting; did you mean 'group_size'?",
    "optimm.lr=1": "optimm: unknown section; did you mean 'optim'?",
    "env.tunrs=2": "env.tunrs: unknown setting; did you mean 'turns'?",
    "engine.slots=3": "engine.slots: unknown setting; it takes no settings",
    "rewards.0.limmit=3": "rewards[0].limmit: unknown setting; did you mean 'limit'?",
    # types
    "optim.lr=fast": "optim.lr: 'fast' (str) is not a number",
    "optim.lr.x=3": "optim.lr: {'x': 3} (a mapping) is not a number",
    "rollout.group_size=2.5": "rollout.group_size: 2.5 (float) is not a whole number",
    "log.live=maybe": "log.live: 'maybe' (str) is not true or false",
    "log.wandb=on": "log.wandb: 'on' (str) is not one of off, offline, online",
    "model.path=": "model.path: None (null) is not text",
    "seed=first": "seed: 'first' (str) is not a whole number",
    "env.turns=[1]": "env.turns: [1] (a list) is not a whole number",
    "env.style=fromal": "env.style: 'fromal' (str) is not one of plain, formal; did you mean 'formal'?",
    "rewards.0.limit=many": "rewards[0].limit: 'many' (str) is not a whole number",
    "rewards.0.words=3": "rewards[0].words: 3 (int) is not a list of which each is text",
    # choices
    "model.dtype=float16": (
        "model.dtype: 'float16' (str) is not one of float32, bfloat16, float64; did you mean 'bfloat16'?"
    ),
    "learner.kind=fsdp": (
        "learner.kind: 'fsdp' (str) is not one of single, ddp, fsdp2, zero1, zero2, zero3; did you mean 'fsdp2'?"
    ),
    # ranges
    "optim.lr=-1": "optim.lr: -1.0 is not above 0",
    "optim.beta2=1": "optim.beta2: 1.0 is not below 1",
    "rollout.temperature=0": "rollout.temperature: 0.0 is not above 0",
    "rollout.top_p=1.5": "rollout.top_p: 1.5 is not in (0, 1]; 1 samples from all tokens",
    "rollout.top_k=-1": "rollout.top_k: -1 is below 0",
    "eval.tasks=0": "eval.tasks: 0 is below 1",
    "train.steps=-1": "train.steps: -1 is below 0",
    "seed=-1": "seed: -1 is below 0",
    "rewards.0.deadline_s=0": "rewards[0].deadline_s: 0.0 is not above 0",
    "env.turns=0": "env.turns: 0 is below 1",
    "name=a/b": "name: 'a/b' has other characters than letters, digits, '.', '-' and '_'",
    # combinations
    "rollout.group_size=1": ("rollout.group_size: 1 is below 2: own.py:ALGORITHM compares the trajectories of a task"),
    "learner.row_tokens=100": ("learner.row_tokens: 100 is below model.max_context=2048: rows hold paths"),
    "rollout.max_completion_tokens=4000": (
        "rollout.max_completion_tokens: 4000 fills model.max_context=2048: no prompt fits"
    ),
    "optim.minibatches=9": (
        "optim.minibatches: 9 is above rollout.groups_per_step=8: an update needs at least one group"
    ),
    "model.dtype=float64 model.attention=flex": (
        "model.attention: 'flex' does not compute in float64; use model.attention=sdpa"
    ),
    "model.dtype=float64 learner.kind=zero1": ("model.dtype: 'float64' is lost under learner.kind=zero1; use fsdp2"),
    "cluster.kind=ray cluster.learner_ranks=2": (
        "learner.kind: 'single' is one process, not cluster.learner_ranks=2; use ddp, fsdp2 or zero1"
    ),
    "cluster.learner_ranks=2 learner.kind=ddp": (
        "cluster.learner_ranks: 2 with cluster.kind=local, which is one process; use cluster.kind=ray"
    ),
    "cluster.address=auto": "cluster.address: 'auto' with cluster.kind=local; use cluster.kind=ray",
    "env.kind=own.py:Searcher": ("retriever: missing: env 'own.py:Searcher' searches; write retriever: {kind: bm25}"),
    "rewards.0.weight=0": "rewards: every weight is 0, so there is nothing to learn from",
    # shapes
    "rollout=5": "rollout: 5 is not a mapping; write rollout: {setting: value}",
    "retriever=bm25": "retriever: 'bm25' is not a mapping; write retriever: {kind: bm25}",
    "rewards={kind: f1}": ("rewards: {'kind': 'f1'} is not a list of rewards; write rewards: [{kind: exact_match}]"),
    "rewards=[f1]": "rewards[0]: 'f1' is not a mapping; write {kind: f1}",
    "rewards=[]": "rewards: missing; write rewards: [{kind: exact_match}]",
    "rewards.1.weight=1": "rewards[1]: 'rewards' has 1, counted from 0",
    "rewards.weight=1": "rewards.weight: 'rewards' is a list; write rewards.0.weight",
    # files
    "train.init_from=runs/nowhere": (
        "train.init_from: no folder 'runs/nowhere'; name a run folder or one of its checkpoints"
    ),
    "out=own.py/runs": "out: 'own.py/runs' lies at or in the file 'own.py'; name a folder",
    # plug-ins
    "env.kind=agentic_serch": "env.kind: unknown 'agentic_serch'; did you mean 'agentic_search'?",
    "rewards.0.kind=exactmatch": "rewards[0].kind: unknown 'exactmatch'; did you mean 'exact_match'?",
    "task.kind=null": f"task.kind: missing; one of {TASKS}",
    "env.kind=3": f"env.kind: 3 is not a name; one of {ENVS}",
    "env.kind=own.py": "env.kind: 'own.py' names a file but nothing in it; write 'own.py:name'",
    "env.kind=other.py:Chat": "env.kind: no file 'other.py' in {folder}",
    "env.kind=a b:Chat": "env.kind: 'a b' of 'a b:Chat' is neither a module nor a file.py",
    "env.kind=rlkit.nothing:X": (
        "env.kind: cannot import 'rlkit.nothing': ModuleNotFoundError: No module named 'rlkit.nothing'"
    ),
    "task.kind=explodes.py:X": "task.kind: cannot import '{folder}/explodes.py': OSError: no such corpus",
    "task.kind=typo.py:X": (
        "task.kind: cannot import '{folder}/typo.py': SyntaxError: invalid syntax (typo.py, line 1)"
    ),
    "env.kind=own.py:Untyped": "env.kind: Untyped.Config is not a dataclass",
    "rewards.0.kind=own.py:brevety": ("rewards[0].kind: '{folder}/own.py' has no 'brevety'; did you mean 'brevity'?"),
    "rewards.0.kind=own.py:NUMBER": "rewards[0].kind: 3 is not callable",
    "rewards.0.kind=own.py:keyword": "rewards[0].word: missing; it is text",
    "rewards.0.kind=own.py:weighted": (
        "rewards[0].kind: '{folder}/own.py:weighted' has a setting 'weight', which is rlkit's own; rename it"
    ),
    "algorithm.kind=own.py:brevity": (
        "algorithm.kind: '{folder}/own.py:brevity' is no Algorithm; name a module's ALGORITHM"
    ),
    # the override itself
    "optim.lr": "'optim.lr' is not key=value, for example optim.lr=1e-5 or rewards.0.weight=0.5",
    "optim..lr=3": "'optim..lr=3' is not key=value, for example optim.lr=1e-5 or rewards.0.weight=0.5",
    "optim.lr=[1": "optim.lr: '[1' is not a YAML value; quote it for the shell and for YAML",
    "optim.lr=${optim.rl}": ("optim.lr: cannot fill in an interpolation: Interpolation key 'optim.rl' not found"),
    "optim.lr=${": "optim.lr: cannot fill in an interpolation: no viable alternative at input '${'",
    "base=other.yaml": "base: cannot be set on the command line; run the recipe itself",
}

BROKEN_FILES = {
    "[1": "recipe.yaml:1: expected ',' or ']', but got '<stream end>'",
    f"{RECIPE}optim:\n  lr 3\n  eps: 1\n": "recipe.yaml:9: mapping values are not allowed here",
    f"{RECIPE}\teps: 1\n": "recipe.yaml:7: found character '\\t' that cannot start any token",
    "- rollout": "recipe.yaml: is not a mapping of sections, such as 'rollout: {group_size: 8}'",
    "": "rewards: missing; write rewards: [{kind: exact_match}]",
    f"{RECIPE}env: {{}}\n": "recipe.yaml:7: 'env' is given twice, first in line 2",
    f"{RECIPE}optim: {{lr: 1, lr: 2}}\n": "recipe.yaml:7: 'optim.lr' is given twice, first in line 7",
    f"{RECIPE}1: 2\n": "recipe.yaml:7: the key '1' is not text; quote it (and '<<' is not supported)",
    f"{RECIPE}  - {{kind: own.py:brevity}}\n": (
        "rewards[1].name: 'brevity' is taken by an earlier reward; give it another name"
    ),
    f"{RECIPE}base: recipe.yaml\n": "base: recipes are based on each other: recipe.yaml -> recipe.yaml",
    f"{RECIPE}base: [a, b]\n": "base: ['a', 'b'] in recipe.yaml is not the name of one file",
    f"{RECIPE}base: quikstart\n": "base: no recipe file '{folder}/quikstart'; did you mean 'quickstart'?",
    RECIPE.partition("\n")[2]: f"task.kind: missing; one of {TASKS}",
}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return user_folder(tmp_path)


def refusal(action: Callable[[], object]) -> str:
    """The message of the refusal, which must come within a second."""
    start = time.perf_counter()
    with pytest.raises(RecipeError) as caught:
        action()
    assert time.perf_counter() - start < 1.0
    return str(caught.value)


@pytest.mark.parametrize(("overrides", "message"), BROKEN_OVERRIDES.items(), ids=BROKEN_OVERRIDES)
def test_a_broken_setting_is_refused_in_one_clear_line(recipe: Path, overrides: str, message: str) -> None:
    arguments = overrides.split(" ") if overrides.count("=") > 1 and "{" not in overrides else [overrides]
    assert refusal(lambda: load(recipe, arguments)) == message.replace("{folder}", str(recipe.parent))


@pytest.mark.parametrize(("text", "message"), BROKEN_FILES.items(), ids=BROKEN_FILES.values())
def test_a_broken_file_is_refused_with_its_line(recipe: Path, text: str, message: str) -> None:
    recipe.write_text(text, encoding="utf-8")
    assert refusal(lambda: load(recipe)) == message.replace("{folder}", str(recipe.parent))


def test_the_unbroken_recipe_loads(recipe: Path) -> None:
    assert load(recipe).recipe.rewards[0].plugin.keywords == {"limit": 5, "words": ()}


def test_a_missing_recipe_names_the_nearest_shipped_one(recipe: Path) -> None:
    assert refusal(lambda: load("quikstart")) == "no recipe file 'quikstart'; did you mean 'quickstart'?"


def test_a_file_that_is_not_text_is_refused(recipe: Path) -> None:
    recipe.write_bytes(b"\xff\xfe\xff")
    assert refusal(lambda: load(recipe)).startswith("recipe.yaml: cannot be read: 'utf-8' codec")


def test_two_recipes_based_on_each_other_are_refused(recipe: Path) -> None:
    recipe.write_text("base: other.yaml", encoding="utf-8")
    recipe.with_name("other.yaml").write_text("base: recipe.yaml", encoding="utf-8")
    message = "base: recipes are based on each other: recipe.yaml -> other.yaml -> recipe.yaml"
    assert refusal(lambda: load(recipe)) == message
