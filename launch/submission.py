"""`rlkit submit`: one recipe to a running Ray cluster, to Kubernetes or to Slurm; `--dry` only shows what would go."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from rlkit.config import Resolved
from rlkit.errors import RecipeError, RlkitError
from rlkit.launch.bundle import EXCLUDES, environment, file_bundle
from rlkit.launch.rayjob import rayjob
from rlkit.launch.slurm import slurm_script
from rlkit.packages import installed
from rlkit.placement import Node, bundles, nodes_needed, shown

__all__ = ["Target", "parse_node", "submit"]

LOCAL_JOB_SERVER = "http://127.0.0.1:8265"
DEFAULT_MEMORY = "64Gi"
LARGEST = 3
"""Files named of a bundle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a job goes."""

    kind: Literal["ray", "kuberay", "slurm"] = "ray"
    address: str | None = None
    """Of the job server; None: RAY_API_SERVER_ADDRESS, else this machine's."""
    node: Node | None = None
    """Size of one node; kuberay and slurm ask for as many as the placement needs."""
    image: str | None = None
    """Container image with rlkit in it."""
    memory: str | None = None
    """Of one node, as Kubernetes writes it; None: 64Gi on KubeRay, what the site gives by itself on Slurm."""
    time: str = "24:00:00"
    """Longest duration of a Slurm job."""
    working_dir: str | None = None
    """Archive that KubeRay's job unpacks, e.g. s3://bucket/project.zip; None: the image has the recipe."""


def submit(resolved: Resolved, overrides: Sequence[str], target: Target, *, dry: bool) -> int:
    """Show or send; the exit code of the job, or of whatever took it."""
    command = _command(resolved, overrides)
    env = environment()
    text = _rendered(resolved, command, target, env)
    if dry:
        # Where a file is shown it has stdout to itself: `--dry > job.sh` is what would be sent.
        print(_preview(resolved, command, target, env), file=sys.stdout if text is None else sys.stderr, flush=True)
        if text is not None:
            print(text, end="")
        return 0
    if target.kind == "ray":
        from rlkit.cluster.jobs import follow
        from rlkit.cluster.jobs import submit as send

        file_bundle(Path.cwd())
        runtime = {"working_dir": ".", "excludes": list(EXCLUDES), "env_vars": {**env, "PYTHONPATH": "."}}
        address = _address(target)
        job = send(address, shlex.join(command), runtime)
        print(f"job {job} at {address}")
        return follow(address, job)
    assert text is not None
    program = ["sbatch"] if target.kind == "slurm" else ["kubectl", "create", "-f", "-"]
    if shutil.which(program[0]) is None:
        raise RlkitError(f"--to {target.kind}: no program '{program[0]}' on the PATH; --dry prints what it would get")
    return subprocess.run(program, input=text, text=True).returncode


def parse_node(text: str) -> Node:
    """`96` or `96,8`: CPUs and GPUs of one node. Raises `RlkitError`."""
    try:
        cpus, _, gpus = text.partition(",")
        node = Node(cpus=int(cpus), gpus=int(gpus or 0))
    except ValueError:
        node = Node(cpus=0)
    if node.cpus < 1 or node.gpus < 0:
        raise RlkitError(f"--node: '{text}' is not CPUS or CPUS,GPUS of one node, for example 96,8")
    return node


def _command(resolved: Resolved, overrides: Sequence[str]) -> list[str]:
    """What runs on the cluster: the recipe by its place in the folder, or by its name if it comes with rlkit."""
    from rlkit.layers import shipped_recipes

    if (address := resolved.recipe.cluster.address) not in (None, "auto"):
        raise RecipeError(
            "cluster.address", f"'{address}': a submitted recipe joins the cluster that it runs on; use auto, or null"
        )
    file, here = resolved.path.resolve(), Path.cwd().resolve()
    if file.is_relative_to(here):
        name = str(file.relative_to(here))
    elif file.parent == shipped_recipes().resolve():
        name = file.stem
    else:
        raise RlkitError(f"{resolved.path}: lies outside the working folder {here}, which is what is sent")
    kind = [] if resolved.recipe.cluster.kind == "ray" else ["cluster.kind=ray"]
    return ["python", "-m", "rlkit", "train", name, *overrides, *kind]


def _rendered(resolved: Resolved, command: Sequence[str], target: Target, env: Mapping[str, str]) -> str | None:
    """Manifest or script; None for a job server, which takes the command as it is."""
    if target.kind == "ray":
        return None
    if target.node is None:
        raise RlkitError(f"--to {target.kind} needs --node CPUS,GPUS: the size of one node")
    recipe = resolved.recipe
    if target.kind == "slurm":
        return slurm_script(
            recipe,
            command,
            node=target.node,
            memory=target.memory,
            time=target.time,
            folder=Path.cwd(),
            programs=Path(sys.executable).parent,
            env=env,
        )
    if target.image is None:
        raise RlkitError("--to kuberay needs --image: a container image with rlkit in it")
    manifest = rayjob(
        recipe,
        command,
        image=target.image,
        node=target.node,
        memory=target.memory or DEFAULT_MEMORY,
        ray_version=installed()["ray"],
        env=env,
        working_dir=target.working_dir,
    )
    return yaml.safe_dump(manifest, sort_keys=False)


def _address(target: Target) -> str:
    return target.address or os.environ.get("RAY_API_SERVER_ADDRESS") or LOCAL_JOB_SERVER


def _preview(resolved: Resolved, command: Sequence[str], target: Target, env: Mapping[str, str]) -> str:
    """Bundle, environment and placement, for a person."""
    recipe = resolved.recipe
    place = _address(target) if target.kind == "ray" else target.kind
    rows = [("to", place), ("command", shlex.join(command))]
    if target.kind == "ray":
        bundle = file_bundle(Path.cwd())
        many = f"{len(bundle.files)} file{'s' * (len(bundle.files) != 1)}"
        rows.append(("bundle", f"{many}, {bundle.num_bytes / 2**20:.1f} MiB of {bundle.folder}"))
        largest = ", ".join(f"{name} ({size / 2**20:.1f} MiB)" for name, size in bundle.files[:LARGEST])
        rows += [("", f"largest: {largest}"), ("", f"without .gitignore's and {', '.join(EXCLUDES)}")]
    else:
        source = target.working_dir or (f"image {target.image}" if target.kind == "kuberay" else str(Path.cwd()))
        rows.append(("bundle", f"nothing is uploaded: the files of {source}"))
    where = str(Path(sys.executable).parent) if target.kind == "slurm" else "what is installed there; here"
    mine = ", ".join(f"{name} {version}" for name, version in installed().items())
    rows.append(("environment", f"{where}: {mine}"))
    rows.append(("", ", ".join(f"{name}={value}" for name, value in env.items()) or "no variables are passed on"))
    for index, line in enumerate(shown(recipe.cluster).splitlines()):
        rows.append(("placement" if index == 0 else "", line))
    if target.node is not None:
        count = nodes_needed(bundles(recipe.cluster), target.node)
        rows.append(("", f"{count} node{'s' * (count != 1)} of {target.node.cpus:g} CPUs, {target.node.gpus:g} GPUs"))
    paths = {"model.path": recipe.model.path, "out": recipe.out, "train.init_from": recipe.train.init_from}
    needed = [f"{name}={value}" for name, value in paths.items() if value and "/" in value]
    if needed:
        rows.append(("every node", f"must see the same files under {', '.join(needed)}"))
    return "\n".join(f"{label:<12} {text}" for label, text in rows)
