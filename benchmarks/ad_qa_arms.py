"""Arms of advertising QA side by side: hallucination, links, declining, accuracy, after and before training.

    python -m benchmarks.ad_qa_arms runs/ads [--out benchmarks/results/ad_qa_arms.md]

Reads the evaluations of every run in the folder, named ARM-SEED. A rate is pooled over seeds with its Wilson interval,
as if seeds were further questions, which is a little too narrow; a mean has half of its 95 % interval over seeds by
Student's t, and none with one seed. Step 0 of all runs is the warm start. Nothing is trained here.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.search_arms import Run, cell, read_runs
from rlkit.metrics import wilson

__all__ = ["rate", "tables"]

RATES = {
    "hallucination": "reward/faithfulness/hallucinated",
    "URL hallucination": "reward/url_validity/any_invalid",
    "no link": "reward/url_validity/without_url",
    "unanswerable declined": "reward/answer_accuracy/unanswerable_declined",
    "answerable declined": "reward/answer_accuracy/answerable_declined",
    "evidence followed": "reward/answer_accuracy/evidence_followed",
    "memory preferred": "reward/answer_accuracy/memory_preferred",
}
MEANS = {
    "reward": "reward",
    "faithfulness": "reward/faithfulness",
    "style": "reward/style",
    "safety": "reward/safety",
    "URL": "reward/url_validity",
    "ROUGE-L": "reward/answer_accuracy",
    "complete": "reward/answer_accuracy/complete",
    "links cited": "reward/answer_accuracy/cited",
    "links": "reward/url_validity/num_urls",
    "tokens": "rollout/completion_tokens",
}
Evaluations = Sequence[Mapping[str, float]]


def rate(found: Evaluations, name: str) -> str:
    """`share [low, high]` of all evaluations together; `-` where none has it."""
    pairs = [(e[f"{name}/mean"], e[f"{name}/n"]) for e in found if f"{name}/mean" in e and f"{name}/n" in e]
    total = round(sum(n for _, n in pairs))
    if not total:
        return "-"
    count = round(sum(mean * n for mean, n in pairs))
    low, high = wilson(count, total)
    return f"{count / total:.2f} [{low:.2f}, {high:.2f}]"


def tables(runs: Sequence[Run]) -> Iterator[str]:
    """Two tables, line by line; the warm start first, then arms in order of their names."""
    arms: dict[str, list[Mapping[str, float]]] = {"warm start": [run.evaluations[0] for run in runs[:1]]}
    for run in runs:
        arms.setdefault(run.arm, []).append(run.evaluations[max(run.evaluations)])
    for names, shown in ((RATES, rate), (MEANS, _mean)):
        yield _row(["arm", "seeds", *names])
        yield _row(["---", *["---:"] * (len(names) + 1)])
        for arm, found in arms.items():
            yield _row([arm, str(len(found)), *(shown(found, name) for name in names.values())])
        yield ""


def _mean(found: Evaluations, name: str) -> str:
    key = name if name.startswith("rollout/") else f"{name}/mean"
    return cell([evaluation[key] for evaluation in found if key in evaluation], 2)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the page, and write it where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    lines = ["# Arms of advertising QA", "", f"`python -m benchmarks.ad_qa_arms {given.folder}`", ""]
    page = "\n".join([*lines, *tables(read_runs(given.folder))])
    print(page)
    if given.out:
        given.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
