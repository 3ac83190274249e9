"""A Slurm batch script from a recipe: `templates/slurm.sh` with its sizes and command filled in."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlkit.errors import RlkitError
from rlkit.placement import Node, bundles, nodes_needed
from rlkit.recipe import Recipe

__all__ = ["slurm_script"]

TEMPLATE = Path(__file__).parent / "templates" / "slurm.sh"
MEMORY = re.compile(r"\d+[GM]i")
TIME = re.compile(r"(\d+-)?\d{1,2}(:\d{2}){0,2}|\d+")


def slurm_script(
    recipe: Recipe,
    command: Sequence[str],
    *,
    node: Node,
    memory: str | None,
    time: str,
    folder: Path,
    programs: Path,
    env: Mapping[str, str],
) -> str:
    """The script; `programs` is the folder of `python` and `ray`, for a job's shell has no environment activated.

    Raises `RlkitError` for node groups, which a job of equal nodes cannot have, and for a malformed size or time.
    """
    if recipe.cluster.learner_nodes or recipe.cluster.rollout_nodes:
        raise RlkitError(
            "cluster.learner_nodes, cluster.rollout_nodes: the nodes of a Slurm job are all alike; leave them null"
        )
    if not TIME.fullmatch(time):
        raise RlkitError(f"--time: '{time}' is not D-HH:MM:SS, HH:MM:SS or minutes")
    if node.gpus != int(node.gpus) or node.cpus != int(node.cpus):
        raise RlkitError("--node: Slurm counts whole CPUs and GPUs")
    if memory is not None and not MEMORY.fullmatch(memory):
        raise RlkitError(f"--memory: '{memory}' is not a whole number of Gi or Mi, for example 512Gi")
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in env.items())
    values = {
        "NAME": recipe.name,
        "NODES": str(nodes_needed(bundles(recipe.cluster), node)),
        "CPUS": f"{node.cpus:g}",
        "GPUS": f"#SBATCH --gpus-per-node={node.gpus:g}" if node.gpus else "# no GPUs",
        "MEMORY": f"#SBATCH --mem={memory.removesuffix('i')}" if memory else "# memory as the site gives it",
        "NUM_GPUS": f"{node.gpus:g}",
        "TIME": time,
        "LOG": f"{recipe.name}-%j.log",
        "FOLDER": shlex.quote(str(folder)),
        "PROGRAMS": shlex.quote(str(programs)),
        "EXPORTS": exports,
        "COMMAND": shlex.join(command),
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    return re.sub(r"@([A-Z_]+)@", lambda match: values[match[1]], text)  # one pass: a value is never filled in again
