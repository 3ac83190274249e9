"""The command line: `rlkit RECIPE key=value ...` runs a recipe, and the other commands look before or after.

Handlers import what they need when they run, so `--help` and a mistyped recipe answer at once.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkit import __version__
from rlkit.errors import RlkitError, nearest

if TYPE_CHECKING:  # rlkit.config takes longer to import than --help may take
    from rlkit.config import Resolved

__all__ = ["main"]

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What a disk says that takes no more."""
LISTS = ("rewards", "envs", "tasks", "retrievers", "engines", "algorithms", "recipes")
EXAMPLES = """examples:
  rlkit recipes/quickstart.yaml                    run it (the same as: rlkit train ...)
  rlkit recipes/quickstart.yaml optim.lr=1e-5      with one setting changed
  rlkit show quickstart rewards.0.weight=0.5       every value and where it comes from
  rlkit explain quickstart                         processes, memory and tokens, before anything starts
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, 2 where recipe or arguments are wrong (one line says how)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser, commands = _parsers()
    if not arguments or arguments[0].startswith("-"):
        parser.parse_args(arguments or ["--help"])
    try:
        name, rest = _command(arguments, commands)
        # intermixed, because options may stand between the recipe and its overrides
        parsed = commands[name].parse_intermixed_args(rest)
        run: Callable[[argparse.Namespace], int] = HANDLERS[name]
        return run(parsed)
    except RlkitError as error:
        if os.environ.get("RLKIT_DEBUG") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in FULL:  # of any other the traceback is wanted
            raise
        again = "free some space and give the same command again: a run goes on from its newest checkpoint"
        print(f"error: {error}; {again}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    formatter = argparse.RawDescriptionHelpFormatter
    description = "Reinforcement learning of language models on prefix trees."
    parser = argparse.ArgumentParser("rlkit", description=description, epilog=EXAMPLES, formatter_class=formatter)
    parser.add_argument("--version", action="version", version=f"rlkit {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    found: dict[str, argparse.ArgumentParser] = {}
    for name, summary in (
        ("train", "run a recipe"),
        ("eval", "measure a checkpoint, or the untrained model, on the recipe's eval split"),
        ("show", "print the resolved recipe with the origin of every value"),
        ("explain", "say what would run: processes, memory, tokens, outputs"),
    ):
        found[name] = commands.add_parser(name, help=summary, description=summary)
        found[name].add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped recipe")
        found[name].add_argument("overrides", metavar="key=value", nargs="*", help="settings that win over the file")
    found["eval"].add_argument("--checkpoint", type=Path, help="a checkpoint or run folder; without it: model.path")
    found["list"] = commands.add_parser("list", help="name what a recipe can choose from")
    found["list"].add_argument("what", nargs="?", choices=LISTS, metavar="WHAT", help=" | ".join(LISTS))
    found["report"] = commands.add_parser("report", help="write one HTML page about a run")
    found["report"].add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    summary = "try to refute what a reward promises: bounds, repeatability, no pay for cheating"
    found["check-reward"] = commands.add_parser("check-reward", help=summary, description=summary)
    found["check-reward"].add_argument(
        "reward", metavar="NAME", help="a short name, module:function or file.py:function"
    )
    found["check-reward"].add_argument("settings", metavar="key=value", nargs="*", help="settings of the reward")
    found["check-reward"].add_argument("--on", type=Path, metavar="RUN", help="also try it on stored rollouts of a run")
    found["check-reward"].add_argument("--allow", nargs="*", default=[], metavar="HOST", help="hosts it may reach")
    summary = "recompute rewards and advantages of a run's stored rollouts under another recipe, without a model"
    found["rescore"] = commands.add_parser("rescore", help=summary, description=summary)
    found["rescore"].add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    found["rescore"].add_argument("overrides", metavar="key=value", nargs="*", help="settings that win over the file")
    found["rescore"].add_argument("--recipe", metavar="RECIPE", help="the other recipe; without it: the run's own")
    found["rescore"].add_argument(
        "--eval", action="store_true", help="the held-out rollouts instead of the training ones"
    )
    found["rescore"].add_argument("--json", type=Path, metavar="FILE", help="also write every number to a file")
    _add_planner(commands, found)
    _add_submit(commands, found)
    _add_plan(commands, found)
    _add_sweep(commands, found)
    found["doctor"] = commands.add_parser("doctor", help="check this machine and say what to fix")
    return parser, found


def _add_planner(commands: Any, found: dict[str, argparse.ArgumentParser]) -> None:
    summary = "write reference steps for the tasks of a recipe into a file, once, before training"
    parser = found["plan-references"] = commands.add_parser("plan-references", help=summary, description=summary)
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe with the tasks")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings that win over the file")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON lines; what it holds is kept")
    modes = "ask a model that is shown the answers, merge correct rollouts, or read the benchmark's annotation"
    parser.add_argument("--mode", choices=("direct", "vote", "annotation"), default="annotation", help=modes)
    parser.add_argument("--split", default="train", help="split of the task source (train)")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N tasks only")
    parser.add_argument("--rollouts", type=Path, metavar="RUN", help="vote: a run that stored rollouts of these tasks")
    parser.add_argument("--k", type=int, default=4, metavar="K", help="vote: rollouts of a task that are read (4)")
    parser.add_argument("--url", help="base of an OpenAI-compatible API, e.g. http://localhost:8000/v1")
    parser.add_argument("--model", help="name of the model there")
    parser.add_argument("--key-env", default="", metavar="NAME", help="environment variable that holds the API key")


def _add_submit(commands: Any, found: dict[str, argparse.ArgumentParser]) -> None:
    summary = "send a recipe to a running Ray cluster, to Kubernetes (KubeRay) or to Slurm"
    parser = found["submit"] = commands.add_parser("submit", help=summary, description=summary)
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped recipe")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings that win over the file")
    parser.add_argument("--to", choices=("ray", "kuberay", "slurm"), default="ray", help="what takes the job (ray)")
    parser.add_argument("--dry", action="store_true", help="only show bundle, environment, placement and manifest")
    parser.add_argument("--address", metavar="URL", help="ray: of the job server (http://127.0.0.1:8265)")
    parser.add_argument("--node", metavar="CPUS[,GPUS]", help="kuberay, slurm: size of one node, e.g. 96,8")
    parser.add_argument("--image", help="kuberay: container image with rlkit in it")
    parser.add_argument("--memory", help="memory of one node, e.g. 512Gi (kuberay: 64Gi; slurm: what the site gives)")
    parser.add_argument("--working-dir", metavar="URI", help="kuberay: archive with the recipe; without it: the image")
    parser.add_argument("--time", default="24:00:00", help="slurm: longest duration (24:00:00)")


def _add_plan(commands: Any, found: dict[str, argparse.ArgumentParser]) -> None:
    summary = "predict step time, memory, staleness and the best split on machines that need not be here"
    parser = found["plan"] = commands.add_parser("plan", help=summary, description=summary)
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped recipe")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings that win over the file")
    parser.add_argument("--cluster", required=True, metavar="FLEET", help="8xH100, or 4x8xH100 for four nodes")
    parser.add_argument("--model", metavar="SIZE", help="sizes of another model: 0.5b, 1.5b, 7b, 8b, 14b, 32b or 70b")
    parser.add_argument("--completion", type=float, metavar="TOKENS", help="mean sampled tokens of a trajectory")
    parser.add_argument("--prompt", type=float, metavar="TOKENS", help="tokens that a group shares")
    parser.add_argument("--spread", type=float, default=0.6, help="standard deviation / mean of completions (0.6)")
    parser.add_argument("--wait", type=float, default=0.0, metavar="S", help="seconds of tools per trajectory (0)")
    parser.add_argument("--from", dest="run", type=Path, metavar="RUN", help="lengths that a run of it measured")


def _add_sweep(commands: Any, found: dict[str, argparse.ArgumentParser]) -> None:
    summary = "run a recipe with many settings; beaten ones are stopped early; started again it goes on"
    parser = found["sweep"] = commands.add_parser("sweep", help=summary, description=summary)
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped recipe")
    parser.add_argument("grid", type=Path, metavar="GRID", help="a YAML file: vary, seeds, search, stop")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings of all arms")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the sweep's folder (runs/sweeps/GRID)")
    parser.add_argument("--concurrent", type=int, default=0, metavar="N", help="trials at a time (as many as fit)")
    parser.add_argument("--dry", action="store_true", help="only list the arms and what they would take")


def _command(arguments: list[str], commands: dict[str, argparse.ArgumentParser]) -> tuple[str, list[str]]:
    """A first word that is no command is a recipe to run."""
    first = arguments[0]
    if first in commands:
        return first, arguments[1:]
    if first.isalpha() and not Path(first).exists():
        from rlkit.layers import shipped_recipes

        recipes = [file.stem for file in shipped_recipes().glob("*.yaml")]
        if first not in recipes:
            raise RlkitError(f"'{first}' is neither a command nor a recipe{nearest(first, [*commands, *recipes])}")
    return "train", arguments


def _load(arguments: argparse.Namespace) -> Resolved:
    from rlkit.config import load

    return load(arguments.recipe, arguments.overrides)


def _load_to_run(arguments: argparse.Namespace) -> Resolved:
    """Also look for the model, before anything starts."""
    from rlkit.models.pretrained import resolve_model

    resolved = _load(arguments)
    resolve_model(resolved.recipe.model.path, setting="model.path")
    return resolved


def _train(arguments: argparse.Namespace) -> int:
    resolved = _load_to_run(arguments)
    from rlkit.launch.run import run_recipe

    return run_recipe(resolved)


def _eval(arguments: argparse.Namespace) -> int:
    checkpoint = _folder(arguments.checkpoint) if arguments.checkpoint else None
    resolved = _load_to_run(arguments)
    from rlkit.launch.run import evaluate_recipe

    return evaluate_recipe(resolved, checkpoint)


def _load_to_look(arguments: argparse.Namespace) -> Resolved:
    """A run prints its own warnings."""
    resolved = _load(arguments)
    for warning in resolved.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return resolved


def _show(arguments: argparse.Namespace) -> int:
    from rlkit.launch.show import annotated

    print(annotated(_load_to_look(arguments)))
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    from rlkit.launch.explain import explanation

    print(explanation(_load_to_look(arguments)))
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from rlkit.launch.listing import listing

    print(listing([arguments.what] if arguments.what else LISTS))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    run = _folder(arguments.run)
    from rlkit.report import write_report

    print(write_report(run))
    return 0


def _check_reward(arguments: argparse.Namespace) -> int:
    run = _folder(arguments.on) if arguments.on else None
    from rlkit.launch.reward_gate import check_reward

    return check_reward(arguments.reward, arguments.settings, run, arguments.allow)


def _rescore(arguments: argparse.Namespace) -> int:
    run = _folder(arguments.run)
    from rlkit.config import load
    from rlkit.rescore import rescore

    own = run / "recipe.yaml"
    if arguments.recipe is None and not own.is_file():
        raise RlkitError(f"{run}: holds no recipe.yaml; name one with --recipe")
    recipe = load(arguments.recipe or own, arguments.overrides).recipe
    comparison = rescore(run, recipe, phase="eval" if arguments.eval else "train")
    if arguments.json:
        arguments.json.write_text(comparison.to_json() + "\n", encoding="utf-8")
    print(comparison)
    return 0


def _plan_references(arguments: argparse.Namespace) -> int:
    rollouts = _folder(arguments.rollouts) if arguments.rollouts else None
    if bool(arguments.url) != bool(arguments.model):
        raise RlkitError("--url and --model belong together: where the planner is served, and its name there")
    for name in ("limit", "k"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise RlkitError(f"--{name}: {getattr(arguments, name)} is below 1")
    resolved = _load(arguments)
    from rlkit.judging import Endpoint
    from rlkit.launch.plan_references import plan_references
    from rlkit.settings import build

    settings = {"url": arguments.url, "model": arguments.model, "key_env": arguments.key_env, "deadline_s": 600.0}
    return plan_references(
        resolved,
        mode=arguments.mode,
        out=arguments.out,
        split=arguments.split,
        limit=arguments.limit,
        endpoint=build(Endpoint, settings, "endpoint") if arguments.url else None,
        rollouts=rollouts,
        k=arguments.k,
    )


def _submit(arguments: argparse.Namespace) -> int:
    resolved = _load(arguments)  # its warnings are about this machine, which is not where it runs
    from rlkit.launch.submission import Target, parse_node, submit

    target = Target(
        kind=arguments.to,
        address=arguments.address,
        node=parse_node(arguments.node) if arguments.node else None,
        image=arguments.image,
        memory=arguments.memory,
        time=arguments.time,
        working_dir=arguments.working_dir,
    )
    return submit(resolved, arguments.overrides, target, dry=arguments.dry)


def _plan(arguments: argparse.Namespace) -> int:
    from rlkit.forecast.hardware import parse_fleet

    fleet = parse_fleet(arguments.cluster)
    run = _folder(arguments.run) if arguments.run else None
    resolved = _load(arguments)
    from rlkit.launch.plan import Assumed, plan

    assumed = Assumed(
        model=arguments.model,
        completion=arguments.completion,
        prompt=arguments.prompt,
        spread=arguments.spread,
        waits_s=arguments.wait,
    )
    print(plan(resolved.recipe, fleet, assumed, run))
    return 0


def _sweep(arguments: argparse.Namespace) -> int:
    if not arguments.grid.is_file():
        near = [str(path) for path in arguments.grid.parent.glob("*.yaml")]
        raise RlkitError(f"no grid file '{arguments.grid}'{nearest(str(arguments.grid), near[:20])}")
    resolved = _load(arguments) if arguments.dry else _load_to_run(arguments)
    from rlkit.launch.sweep import sweep

    out = arguments.out or Path("runs/sweeps") / arguments.grid.stem
    return sweep(resolved, arguments.overrides, arguments.grid, out, concurrent=arguments.concurrent, dry=arguments.dry)


def _doctor(_: argparse.Namespace) -> int:
    from rlkit.launch.doctor import main as doctor

    return doctor()


def _folder(path: Path) -> Path:
    if not path.is_dir():
        beside = [str(entry) for entry in path.parent.glob("*") if entry.is_dir()]
        raise RlkitError(f"no folder '{path}'{nearest(str(path), beside[:20])}")
    return path


HANDLERS: dict[str, Callable[[argparse.Namespace], int]] = {
    "train": _train,
    "eval": _eval,
    "show": _show,
    "explain": _explain,
    "list": _list,
    "report": _report,
    "check-reward": _check_reward,
    "rescore": _rescore,
    "plan-references": _plan_references,
    "submit": _submit,
    "plan": _plan,
    "sweep": _sweep,
    "doctor": _doctor,
}
