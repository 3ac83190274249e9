"""The planner against figures that others published and against this repository's own runs.

    python -m benchmarks.forecast

writes results/forecast.json and the tables of docs/planner_backtest.md. Nothing is run: published and measured numbers
stand below with their sources, and the planner predicts each of them. Rows marked `fit` are what
`rlkit/forecast/hardware.py` was fitted on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from rlkit.forecast.advice import Workload, forecast
from rlkit.forecast.hardware import DEVICES, Fleet, parse_fleet
from rlkit.forecast.roofline import ModelSize, decode_step_s, prefill_s, train_s
from rlkit.launch.plan import MODELS

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "planner_backtest.md"
BEGIN, END = "<!-- tables of benchmarks/forecast.py -->", "<!-- end of tables -->"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One published or measured number."""

    group: str
    what: str
    source: str
    """Key of the page's list of sources."""
    unit: str
    published: float
    predicted: float
    fit: bool = False

    @property
    def ratio(self) -> float:
        """Predicted / published."""
        return self.predicted / self.published


def mpt(parameters: float, hidden: int, layers: int) -> ModelSize:
    """MosaicML's models: tied embeddings, full attention."""
    return ModelSize(parameters=parameters, layers=layers, hidden=hidden, kv_width=2 * hidden, vocabulary=50368)


def decoding() -> Iterator[Row]:
    """Milliseconds per token of one sequence, all sequences of the batch advancing together."""
    group, llama = "decoding", MODELS["8b"]
    for batch, published in ((1, 6.48), (4, 6.59), (16, 10.94), (64, 46.91)):
        step = decode_step_s(llama, DEVICES["h100"], batch, 300)
        what = f"Llama-3.1-8B, 1 H100, vLLM 0.21, {batch} at once, short chats (300 keys assumed)"
        yield Row(
            group=group, what=what, source="B", unit="ms", published=published, predicted=1e3 * step, fit=batch == 1
        )
    card = DEVICES["a100-40g"]
    for batch, per_s in ((1, 75.0), (8, 6.6 * 75)):
        # throughput over whole requests: 1024 tokens of prefill each, then 128 tokens
        prefill = batch * prefill_s(llama, card, 1024, 512)
        seconds = prefill + 128 * decode_step_s(llama, card, batch, 1024 + 64)
        what = f"Llama-3.1-8B, 1 A100 40 GB, vLLM 0.23, 1024 + 128 tokens, {batch} at once"
        published = 1e3 * batch / per_s
        predicted = 1e3 * seconds / 128
        yield Row(
            group=group, what=what, source="C", unit="ms", published=published, predicted=predicted, fit=batch == 1
        )
    for name, devices, model, published in (("8B", 1, llama, 833.4), ("70B", 4, MODELS["70b"], 2077.5)):
        card = DEVICES["h200"]
        step = decode_step_s(model, card, 8, 32 + 64, devices=devices)
        seconds = prefill_s(model, card, 8 * 32, 16, devices=devices) + 128 * step
        what = f"Llama-3.1-{name}, {devices} H200, vLLM 2024, 8 x (32 + 128) tokens"
        yield Row(group=group, what=what, source="D", unit="ms", published=published, predicted=1e3 * seconds)


def training() -> Iterator[Row]:
    """Tokens a second and GPU; the published runs recompute where they say so."""
    rows = [
        ("1B", mpt(1.316e9, 2048, 24), 2048, 8, False, 45455),
        ("3B", mpt(2.652e9, 2560, 32), 2048, 16, False, 24142),
        ("7B", mpt(6.659e9, 4096, 32), 2048, 8, False, 10643),
        ("7B", mpt(6.684e9, 4096, 32), 8192, 8, True, 6935),
        ("7B", mpt(6.785e9, 4096, 32), 32768, 8, True, 3318),
        ("13B", mpt(12.854e9, 5120, 40), 2048, 8, False, 4792),
        ("13B", mpt(12.854e9, 5120, 40), 2048, 64, False, 4800),
        ("30B", mpt(29.975e9, 7168, 48), 2048, 8, True, 2002),
        ("30B", mpt(29.975e9, 7168, 48), 2048, 32, True, 2308),
        ("70B", mpt(64.862e9, 8192, 80), 2048, 64, True, 1039),
    ]
    for name, model, length, gpus, recompute, published in rows:
        # a large batch: the optimizer's share vanishes
        seconds = train_s(model, DEVICES["h100"], length, length, length / 2, recompute=recompute, updates=0)
        what = f"MPT-{name}, {gpus} H100, sequences of {length}" + ", recomputed" * recompute
        fit = (name, length) == ("7B", 2048)
        yield Row(
            group="training", what=what, source="E", unit="tokens/s", published=published,
            predicted=length / seconds, fit=fit,
        )  # fmt: skip


def rl_steps() -> Iterator[Row]:
    """Whole GRPO steps of NeMo RL 0.4: samples of prompts of 150 tokens (assumed), policy and reference log-probs."""
    for name, staleness, gpus, engine, average, published in (
        ("8B", 0, 16, 1, 1060, 97.7),
        ("8B", 1, 16, 1, 1129, 74.6),
        ("32B", 0, 32, 4, 3206, 393.0),
        ("32B", 1, 64, 4, 3207, 215.0),
    ):
        work = Workload(
            model=MODELS[name.lower()], groups=64, group_size=32, prompt=150, completion=average - 150, cap=4096 - 150,
            slots=256, updates=4, scoring_passes=2, references=1, max_staleness=staleness, shares_prefix=False,
        )  # fmt: skip
        fleet = parse_fleet(f"{gpus // 8}x8xH100")
        if staleness:
            found = forecast(
                work, fleet, ranks=gpus // 2, workers=gpus // 2 // engine, placement="disaggregated",
                engine_devices=engine,
            )  # fmt: skip
        else:
            found = forecast(
                work, fleet, ranks=gpus, workers=gpus // engine, placement="colocated", engine_devices=engine
            )
        model = "Llama-3.1-8B" if name == "8B" else "Qwen3-32B"
        mode = "one step off policy, half and half (assumed)" if staleness else "on policy"
        what = f"{model}, {gpus} H100, {mode}, 2048 samples of {average} tokens"
        yield Row(group="RL step", what=what, source="A", unit="s", published=published, predicted=found.step_s)


SMOL = ModelSize(parameters=134.5e6, layers=30, hidden=576, kv_width=384, vocabulary=49152)
CORE = DEVICES["cpu"]
BOTH_CORES = Fleet(
    device=replace(CORE, flops=2 * CORE.flops, bandwidth=2 * CORE.bandwidth), count=1, per_node=1
)  # two threads of one process


def here() -> Iterator[Row]:
    """This repository's own runs on two CPU cores."""
    core = Fleet(device=CORE, count=1, per_node=1)
    shapes = json.loads((RESULTS / "grpo_step.json").read_text(encoding="utf-8"))["shapes"]
    for entry in shapes:
        if entry["peer"] != "as-it-is":
            continue
        shape = entry["shape"]
        p, c, g, prompts = (shape[key] for key in ("prompt", "completion", "group", "prompts"))
        work = Workload(
            model=SMOL, groups=prompts, group_size=g, prompt=p, completion=c, spread=0, slots=prompts * g,
            dtype_bytes=4, sharing="single",
        )  # fmt: skip
        found = forecast(work, core, ranks=1, workers=1, placement="colocated")
        steps = entry["steps"]["rlkit"]
        for part, predicted in (
            ("generation", found.rollout_s),
            ("learner", found.train_s),
        ):
            yield Row(
                group="this machine", what=f"rlkit, {p} + {c} x {g}, {part}", source="F", unit="s",
                published=median(step[part][0] for step in steps), predicted=predicted,
            )  # fmt: skip
    pushed = forecast(
        Workload(model=SMOL, groups=1, group_size=1, prompt=1, completion=1, dtype_bytes=4, sharing="single"),
        Fleet(device=CORE, count=2, per_node=2), ranks=1, workers=1, placement="disaggregated",
    )  # fmt: skip
    yield Row(
        group="this machine", what="538 MB from one learner to one worker", source="I", unit="s", published=0.311,
        predicted=pushed.sync_s, fit=True,
    )  # fmt: skip
    for row in json.loads((RESULTS / "generate.json").read_text(encoding="utf-8"))["rows"]:
        p, g, c = row["prompt"], row["group"], row["completion"]
        work = Workload(
            model=SMOL, groups=1, group_size=g, prompt=p, completion=c, spread=0, slots=g, dtype_bytes=4,
            sharing="single",
        )  # fmt: skip
        found = forecast(work, BOTH_CORES, ranks=1, workers=1, placement="colocated")
        yield Row(
            group="this machine", what=f"rlkit, {p} + {c} x {g} on two cores, sampling", source="G", unit="s",
            published=row["costs"]["rlkit"]["wall_s"], predicted=found.rollout_s, fit=True,
        )  # fmt: skip
    # quickstart.md: 32775 unique tokens over 14 steps of 4 x 8; a trajectory samples about 20 tokens and reads 25
    unique = 32775 / 14
    work = Workload(
        model=SMOL, groups=4, group_size=8, prompt=138, completion=20, spread=0.3, cap=60,
        observed=(unique - 4 * 138 - 32 * 20) / 32, slots=32, dtype_bytes=4, sharing="single",
    )  # fmt: skip
    found = forecast(work, BOTH_CORES, ranks=1, workers=1, placement="colocated")
    for part, published, predicted in (
        ("rollout", 7.0, found.rollout_s),
        ("learner", 8.6, found.train_s),
    ):
        yield Row(
            group="this machine", what=f"quickstart, {part}", source="H", unit="s", published=published,
            predicted=predicted,
        )  # fmt: skip


def spread_of(rows: list[Row]) -> tuple[float, float, float]:
    """Geometric mean of predicted / published, typical factor off (geometric), and the worst factor off."""
    logs = [math.log(row.ratio) for row in rows]
    return (
        math.exp(sum(logs) / len(logs)),
        math.exp(sum(map(abs, logs)) / len(logs)),
        math.exp(max(map(abs, logs))),
    )


def tables(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| part | predictions | mean of predicted / published | typical factor off | worst |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    groups = list(dict.fromkeys(row.group for row in rows))
    for group in groups:
        held_out = [row for row in rows if row.group == group and not row.fit]
        mean, typical, worst = spread_of(held_out)
        lines.append(f"| {group} | {len(held_out)} | {mean:.2f} | {typical:.2f} | {worst:.2f} |")
    for group in groups:
        lines += ["", f"### {group.capitalize() if group != 'RL step' else group}", ""]
        lines += ["| what | published | predicted | ratio | source |", "| --- | ---: | ---: | ---: | --- |"]
        for row in rows:
            if row.group == group:
                ratio = f"{row.ratio:.2f}" + " (fit)" * row.fit
                lines.append(
                    f"| {row.what} | {row.published:.4g} {row.unit} | {row.predicted:.4g} | {ratio} | {row.source} |"
                )
    return "\n".join(lines)


def main() -> None:
    """Predict everything, write both files and print the table."""
    rows = [*decoding(), *training(), *rl_steps(), *here()]
    data = [asdict(row) | {"ratio": round(row.ratio, 4)} for row in rows]
    (RESULTS / "forecast.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables(rows)}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")
    print(tables(rows))


if __name__ == "__main__":
    main()
