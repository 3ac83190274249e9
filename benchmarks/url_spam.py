"""What a policy learns from each reading of the URL reward, and of "normalised": a bandit trained by the real loop.

    python -m benchmarks.url_spam            writes benchmarks/results/url_spam.{json,md}, minutes on one core

A random two-layer model whose vocabulary is twelve phrases answers one question: the right sentence, an invented one,
a polite one, the page that holds the answer, three pages of the evidence that do not, and five pages that nobody has.
So a link costs one token, and what the rewards say about links decides how many there are. Rewards, loop, credit, loss
and optimizer are rlkit's own, with the weights 1 : 1 : 2 : 2 of the paper.

    spam      links of the evidence beyond the one that holds the answer, per answer
    invented  share of answers with a link that nobody has
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.machine import ROOT, machine
from rlkit.config import load
from rlkit.launch.run import run_recipe
from rlkit.policy.tiny import CHAT_TEMPLATE, SPECIAL
from rlkit.recorder import read_metrics

RESULTS = Path(__file__).parent / "results"
MODES = ("ratio", "count", "indicator")
NORMALISATIONS = ("together", "apart", "group_z")
HOST = "https://docs.example.com"
PAGES = {
    "budget": "The daily budget is at least 5 dollars.",
    "bids": "A bid is taken from the daily budget of its campaign.",
    "review": "Reviewers look at every advertisement whatever its budget.",
    "pixels": "A pixel reports purchases and spends no budget.",
}
"""All of them speak of budgets, so that retrieval brings them all."""
PHRASES = (
    PAGES["budget"],
    "Refunds arrive on Tuesdays by carrier pigeon.",
    "We are glad to help.",
    *(f"{HOST}/{page}" for page in PAGES),
    *(f"{HOST}/{page}" for page in ("prices", "start", "contact", "rules", "faq")),
)
LR = 3e-3
QUESTION = "What is the least daily budget?"
REFERENCE = f"{PAGES['budget']} See {HOST}/budget."
MEASURED = {
    "links": "reward/url_validity/num_urls",
    "spam": "reward/links/spam",
    "relevant": "reward/answer_accuracy/cited",
    "invented": "reward/url_validity/any_invalid",
    "without": "reward/url_validity/without_url",
    "faithful": "reward/faithfulness",
    "style": "reward/style",
    "rouge": "reward/answer_accuracy",
}


def write_model(folder: Path, seed: int) -> None:
    """A random Llama over the phrases."""
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, "<unk>", *PHRASES))}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")),
        pad_token=SPECIAL[0],
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(vocabulary), max_position_embeddings=512, **shape, **ids))
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_data(root: Path) -> None:
    """The corpus, in the layout of `docs_qa`: four pages and one question, asked over and over."""
    asked = {"question": QUESTION, "answer": REFERENCE, "cited_pages": [f"{HOST}/budget"], "from_faq_page": True}
    files = {
        "pages": [{"id": page, "url": f"{HOST}/{page}", "title": page, "text": text} for page, text in PAGES.items()],
        "qa_train": [{"id": f"q{number}", **asked} for number in range(64)],
        "qa_test_public": [{"id": "test", **asked}],
    }
    (root / "ads").mkdir(parents=True)
    for stem, rows in files.items():
        with gzip.open(root / "ads" / f"{stem}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def write_measure(file: Path) -> None:
    """A reward that only counts, as a user would add it."""
    file.write_text(f'''"""Counts links."""
from rlkit.evidence.passages import evidence_of
from rlkit.evidence.urls import extract_urls
from rlkit.reward import Task, Trajectory


def links(task: Task, trajectory: Trajectory) -> dict[str, float]:
    shown, cited = extract_urls(evidence_of(trajectory)), extract_urls(trajectory.answer or "")
    return {{"spam": float(len(set(shown).intersection(cited) - {{"{HOST}/budget"}}))}}
''')


def train(folder: Path, mode: str, normalize: str, seed: int, steps: int) -> tuple[dict[str, float], list[float]]:
    """One run; what its policy does in the end, and spam per step."""
    out = folder / f"{mode}-{normalize}-{seed}"
    write_model(out / "model", seed)
    rewards = (
        "[{kind: faithfulness}, {kind: style}, {kind: safety, weight: 2.0}, "
        f"{{kind: url_validity, weight: 2.0, mode: {mode}}}, "
        "{kind: answer_accuracy, weight: 0.0}, "
        f"{{kind: '{folder / 'measure.py'}:links', name: links, weight: 0.0}}]"
    )
    overrides = [
        f"seed={seed}",
        f"out={out}",
        f"model.path={out / 'model'}",
        "task.kind=docs_qa",
        f"task.path={folder / 'data'}",
        "task.corpora=[ads]",
        "env.kind=qa_retrieval",
        'env.prompt="<{information}>{passages}</{information}> {question}"',
        'env.passage="{title} {url} {text}"',
        "env.top_k=4",
        f"rewards={rewards}",
        f"algorithm.normalize={normalize}",
        "rollout.group_size=16",
        "rollout.groups_per_step=4",
        "rollout.max_concurrent_groups=4",
        "rollout.max_completion_tokens=8",
        f"optim.lr={LR}",
        f"train.steps={steps}",
        "train.eval_every=0",
        "train.checkpoint_every=0",
        "eval.split=test",
        "eval.tasks=1",
        "eval.samples=128",
        "eval.temperature=1.0",
        "log.tensorboard=false",
        "log.trees_per_step=0",
    ]
    run_recipe(load(ROOT / "recipes/tiny.yaml", overrides))
    rows = read_metrics(out)
    last = [row.metrics for row in rows if row.phase == "eval"][-1]
    curve = [row.metrics["reward/links/spam/mean"] for row in rows if "reward/links/spam/mean" in row.metrics]
    return {name: last[f"{metric}/mean"] for name, metric in MEASURED.items()}, curve[1:-1]


def table(runs: list[dict[str, Any]]) -> list[str]:
    """Means over seeds with the least and the greatest."""
    lines = ["| URL reward | normalised | " + " | ".join(MEASURED) + " |", "| --- | --- |" + " ---: |" * len(MEASURED)]
    for mode in MODES:
        for normalize in NORMALISATIONS:
            found = [run["end"] for run in runs if (run["mode"], run["normalize"]) == (mode, normalize)]
            if not found:
                continue
            cells = []
            for name in MEASURED:
                values = [end[name] for end in found]
                cells.append(f"{np.mean(values):.2f} [{min(values):.2f}, {max(values):.2f}]")
            lines.append(f"| {mode} | {normalize} | " + " | ".join(cells) + " |")
    return lines


def page(runs: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# Link spam: what three readings of the URL reward teach",
        "",
        "Means over seeds with the least and the greatest, of 128 answers of the trained policy; three of the",
        "four links of the evidence are spam, and `relevant` is the fourth (benchmarks/url_spam.py).",
        "",
        *table(runs),
        "",
        *(f"- {name}: {value}" for name, value in about.items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train every arm with every seed, write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--normalisations", nargs="+", default=NORMALISATIONS, choices=NORMALISATIONS)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the two files")
    arguments = parser.parse_args()
    start = time.perf_counter()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="rlkit-url-spam-") as name:
        folder = Path(name)
        write_data(folder / "data")
        write_measure(folder / "measure.py")
        for mode in arguments.modes:
            for normalize in arguments.normalisations:
                for seed in range(arguments.seeds):
                    end, curve = train(folder, mode, normalize, seed, arguments.steps)
                    runs.append({"mode": mode, "normalize": normalize, "seed": seed, "end": end, "spam": curve})
                    print(mode, normalize, seed, {key: round(value, 2) for key, value in end.items()}, flush=True)
    about = machine(1) | {
        "command": f"python -m benchmarks.url_spam --steps {arguments.steps} --seeds {arguments.seeds}",
        "seconds": round(time.perf_counter() - start),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "url_spam.json").write_text(json.dumps({"machine": about, "runs": runs}, indent=1) + "\n")
    (arguments.out / "url_spam.md").write_text(page(runs, about), encoding="utf-8")


if __name__ == "__main__":
    main()
