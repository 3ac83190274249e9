"""`rlkit plan-references RECIPE`: reference steps for the tasks of a recipe, into a file that its task source reads."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.progress import Progress

from rlkit.config import Resolved, load
from rlkit.errors import RlkitError
from rlkit.judging import Endpoint, JudgeClient
from rlkit.planning.direct import DIRECT
from rlkit.planning.planner import UNANSWERED, Mode, Place, Planner
from rlkit.planning.vote import MERGE, correct_paths
from rlkit.recorder import rollout_files
from rlkit.records import Task, Tree
from rlkit.rollout.build import build_source
from rlkit.store import read_trees
from rlkit.tags import SEARCH_R1_TAGS

__all__ = ["plan_references"]


def plan_references(
    resolved: Resolved,
    *,
    mode: Mode,
    out: Path,
    split: str = "train",
    limit: int | None = None,
    endpoint: Endpoint | None = None,
    rollouts: Path | None = None,
    k: int = 4,
) -> int:
    """Plan the tasks of `split`, and say which source gave how many references."""
    if mode == "direct" and endpoint is None:
        raise RlkitError(
            "--mode direct asks a language model: name it with --url and --model, or use --mode annotation"
        )
    if mode == "vote" and rollouts is None:
        raise RlkitError("--mode vote reads rollouts: name a run with --rollouts, or use --mode direct or annotation")
    places = places_of(list(build_source(resolved.recipe).tasks(split))[:limit], split)
    planner = Planner(
        mode=mode,
        file=out,
        direct=JudgeClient(endpoint, DIRECT) if endpoint else None,
        merge=JudgeClient(endpoint, MERGE) if endpoint else None,
        paths=_correct(rollouts, [place.task for place in places], k) if rollouts else {},
    )
    with Progress() as progress:
        bar = progress.add_task("references", total=len(places))
        counts = planner.plan(places, lambda count: progress.advance(bar, count))
    for source, count in counts.most_common():
        print(f"{source:32} {count}")
    print(f"references: {out}; use them with task.references={out}")
    if counts[UNANSWERED]:
        print("the endpoint failed for some tasks; run the same command again to ask about them", file=sys.stderr)
        return 1
    return 0


def places_of(tasks: Sequence[Task], split: str) -> list[Place]:
    """Tasks with their position among those of their data source."""
    seen: Counter[str] = Counter()
    places = []
    for task in tasks:
        name = str(task.data.get("dataset", ""))
        places.append(Place(task=task, data_source=name, split=split, index=seen[name]))
        seen[name] += 1
    return places


def _correct(run: Path, tasks: Sequence[Task], k: int) -> dict[str, list[tuple[str, ...]]]:
    """Paths of the correct ones among the first `k` stored rollouts of each task."""
    wanted, trees = {task.id: task for task in tasks}, dict[str, list[Tree]]()
    own = run / "recipe.yaml"
    settings = load(own).recipe.env.settings if own.is_file() else None
    for phase in ("train", "eval"):
        for file in rollout_files(run, phase).values():
            for stored in read_trees(file):
                tree = stored.scored.tree
                if tree.task.id in wanted:
                    trees.setdefault(tree.task.id, []).append(tree)
    tags = getattr(settings, "tags", SEARCH_R1_TAGS)
    return {name: correct_paths(wanted[name], found, tags, k) for name, found in trees.items()}
