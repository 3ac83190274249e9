"""The mismatch canary against planted faults, and against a clean run.

    python -m benchmarks.canary [--steps 200] > benchmarks/results/canary.md

Trains a random two-layer model on the made-up world, in one process. Each fault is planted into the engine after a few
steps of a run of its own; the table says in which step it was seen and what the canary blamed. Engines lie about it: a
lost tensor still answers with the fingerprint that was sent, as an engine in another process may.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import machine
from rlkit.config import load
from rlkit.errors import SyncError
from rlkit.launch.run import run_parts
from rlkit.policy.base import Completion, SampleRequest, Sampling
from rlkit.policy.tiny import tiny_model
from rlkit.recorder import read_metrics
from rlkit.records import SamplingState
from rlkit.train import train

__all__ = ["FAULTS", "Outcome", "run"]

RECIPE = Path(__file__).parents[1] / "recipes" / "tiny.yaml"
PLANTED = 3
"""Version of the weights from which an engine is at fault."""
Load = Callable[[Mapping[str, Any], int], str]


def stale_tensor(engine: Any) -> None:
    """One tensor keeps the values of an older version."""
    load: Load = engine.load_weights
    kept: dict[str, torch.Tensor] = {}

    def loaded(weights: Mapping[str, Any], version: int) -> str:
        found = load(weights, version)
        tensor = engine._model.state_dict()["model.layers.0.mlp.down_proj.weight"]
        if version < PLANTED:
            kept["it"] = tensor.clone()
        else:
            tensor.copy_(kept["it"])
        return found

    engine.load_weights = loaded


def skipped_tensor(engine: Any) -> None:
    """One tensor never arrived: the engine runs what its memory held, here that of another start."""
    load: Load = engine.load_weights

    def loaded(weights: Mapping[str, Any], version: int) -> str:
        found = load(weights, version)
        if version >= PLANTED:
            tensor = engine._model.state_dict()["model.layers.1.self_attn.q_proj.weight"]
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)) * tensor.std())
        return found

    engine.load_weights = loaded


def lost_newline(rollouts: Any) -> None:
    """The worker's chat template is another one, by one newline."""
    tokenizer = rollouts.renderer.tokenizer
    template = tokenizer.chat_template
    tokenizer.chat_template = template.replace("\\n", "", 1) if "\\n" in template else template.replace("\n", "", 1)
    if tokenizer.chat_template == template:
        raise ValueError("the template has no newline to lose")


def _sampling(engine: Any, change: Callable[[Any, SampleRequest], Any]) -> None:
    """Let `change` answer the requests from version `PLANTED` on."""
    sample = engine.sample

    async def sampled(request: SampleRequest) -> Completion:
        if engine.version < PLANTED:
            return await sample(request)  # type: ignore[no-any-return]
        return await change(sample, request)  # type: ignore[no-any-return]

    engine.sample = sampled


def wrong_temperature(engine: Any) -> None:
    """Samples at 1.4 and says 1."""

    async def change(sample: Any, request: SampleRequest) -> Completion:
        done = await sample(replace(request, sampling=replace(request.sampling, temperature=1.4)))
        return replace(done, sampling=SamplingState(temperature=request.sampling.temperature))

    _sampling(engine, change)


def top_p_logprobs(engine: Any) -> None:
    """Samples from kept sets and reports log-probs of the whole vocabulary, as many servers do."""
    extend = engine._extend

    def extended(draft: Any, logits: Any) -> Any:
        found = extend(draft, logits)
        if engine.version >= PLANTED:
            row = logits.astype(np.float64) - float(logits.max())
            last = draft.draws[-1]
            full = float(row[last.token_id] - np.log(np.exp(row).sum()))
            draft.draws[-1] = replace(last, logprob=full)
            if isinstance(found, Completion):
                found = replace(found, behavior_logprobs=np.array([d.logprob for d in draft.draws], np.float32))
        return found

    engine._extend = extended


def hidden_top_p(engine: Any) -> None:
    """Samples from kept sets that its nodes do not hold."""

    async def change(sample: Any, request: SampleRequest) -> Completion:
        done = await sample(replace(request, sampling=Sampling(top_p=0.5)))
        return replace(done, sampling=SamplingState())

    _sampling(engine, change)


def stale_keys(engine: Any) -> None:
    """Prompts go on with the keys and values that older weights left, wherever the same tokens come again."""
    admit = engine._draft
    older: dict[bytes, Any] = {}

    def drafted(request: SampleRequest) -> Any:
        draft = admit(request)
        if request.task_id != "canary":
            found = older.setdefault(request.token_ids[: request.num_shared].tobytes(), draft.prefix)
            draft.prefix = found if engine.version >= PLANTED else draft.prefix
        return draft

    engine._draft = drafted


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One way to be wrong."""

    plant: Callable[[Any], None]
    blamed: str
    """What the canary's message must name."""
    on: str = "engine"
    """`engine` or `rollouts`, what `plant` takes."""
    overrides: Sequence[str] = ()
    """Of the recipe."""


FAULTS: dict[str, Fault] = {
    "stale tensor": Fault(plant=stale_tensor, blamed="model.layers.0.mlp.down_proj.weight"),
    "skipped tensor": Fault(plant=skipped_tensor, blamed="model.layers.1.self_attn.q_proj.weight"),
    "lost newline": Fault(plant=lost_newline, blamed="chat template", on="rollouts"),
    "wrong temperature": Fault(plant=wrong_temperature, blamed="temperature: the engine sampled at about 1.40"),
    "stale keys and values": Fault(plant=stale_keys, blamed="keys and values"),
    "top-p, log-probs of all": Fault(
        plant=top_p_logprobs, blamed="over the whole vocabulary", overrides=("rollout.top_p=0.5",)
    ),
    "top-p, not recorded": Fault(plant=hidden_top_p, blamed="kept sets that its nodes do not hold"),
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the canary saw in one run."""

    differences: Sequence[float]
    """Nats, per step that had a token to compare."""
    breaches: int
    """Steps above the tolerance, the one that ended the run not counted."""
    first: str
    """First message; empty if there was none."""
    ended: str
    """Message that ended the run; empty if it ran to its end."""


class _Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())


def run(model: Path, out: Path, fault: Fault | None, steps: int, *overrides: str) -> Outcome:
    """Train, with a fault or without."""
    settings = [
        f"model.path={model}",
        f"out={out}",
        f"train.steps={steps}",
        "train.eval_every=0",
        "train.checkpoint_every=0",
        "rewards=[{kind: benchmarks.even_bytes:even_bytes}]",
        "task.num_train=4",
        "log.tensorboard=false",
        *(fault.overrides if fault is not None else ()),
        *overrides,
    ]
    messages, logger = _Messages(), logging.getLogger("rlkit.canary")
    logger.addHandler(messages)
    ended = ""
    try:
        with run_parts(load(RECIPE, settings)) as parts:
            if fault is not None:
                rollouts: Any = parts.rollouts
                fault.plant(rollouts if fault.on == "rollouts" else rollouts.engine)
            train(parts)
    except SyncError as error:
        ended = str(error)
    finally:
        logger.removeHandler(messages)
    logged = [line.metrics for line in read_metrics(out) if line.phase == "train"]
    return Outcome(
        differences=[step["canary/difference"] for step in logged if "canary/difference" in step],
        breaches=int(sum(step.get("canary/breaches", 0.0) for step in logged)),
        first=next(iter(messages.found), ended),
        ended=ended,
    )


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    print("# Does the mismatch canary see what is wrong, and only that?\n")
    print(f"```bash\npython -m benchmarks.canary --steps {steps} > benchmarks/results/canary.md\n```\n")
    print(f"Faults are in the engine from version {PLANTED} of the weights on; the template is wrong from the start.\n")
    print("| fault | ended the run | nats before | first message |\n| --- | --- | ---: | --- |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = tiny_model(folder / "tiny")
        for number, (title, fault) in enumerate(FAULTS.items()):
            seen = run(model, folder / str(number), fault, 20)
            right = "yes" if seen.ended and fault.blamed in seen.first else "NO"
            before = f"{max(seen.differences[:2]):.1g}" if seen.differences else "-"
            print(f"| {title} | {right} | {before} | {seen.first} |")
        print(
            "\n| clean run | steps | compared | false alarms | mean nats | worst step |\n"
            "| --- | ---: | ---: | ---: | ---: | ---: |"
        )
        for number, overrides in enumerate(CLEAN):
            seen = run(model, folder / f"clean-{number}", None, steps, *overrides)
            found = np.array(seen.differences)
            title = ", ".join(overrides) or "as it is"
            alarms = seen.breaches + bool(seen.ended)
            print(f"| {title} | {steps} | {len(found)} | {alarms} | {found.mean():.2g} | {found.max():.2g} |")
    print(f"\n{describe(machine(1))}")


def describe(found: Mapping[str, Any]) -> str:
    """The machine as one line."""
    return ", ".join(f"{name} {value}" for name, value in found.items())


CLEAN: Sequence[Sequence[str]] = (
    (),
    ("model.dtype=bfloat16",),
    ("rollout.top_p=0.8", "rollout.temperature=0.7"),
    ("rollout.max_staleness=2",),
)
"""Overrides of the recipe."""

if __name__ == "__main__":
    main()
