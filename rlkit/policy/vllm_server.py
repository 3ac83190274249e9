"""The other end of `rlkit.policy.vllm`: a program inside vLLM's own environment, tokens in and tokens out.

    stdin   one JSON object per line: {"do": "sample" | "abort" | "load" | "stop", ...}
    stdout  one JSON object per line: {"ready": ...}, {"id": ..., "tokens": ...}, {"loaded": ...}, {"problem": ...}

It imports vLLM, and of rlkit only what needs nothing that is missing there. Weights come as a safetensors file in
shared memory. What vLLM prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from rlkit.policy.tokens import StopWatch
from rlkit.sync.fingerprint import digests, fingerprint

__all__ = ["Server", "main"]


class Server:
    """Owns a vLLM engine of this process and advances it while there is work."""

    def __init__(self, settings: Mapping[str, Any], answers: TextIO) -> None:
        from transformers import AutoTokenizer
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        self._answers = answers
        self._tokenizer: Any = AutoTokenizer.from_pretrained(settings["model"], local_files_only=True)
        self._engine: Any = LLMEngine.from_engine_args(
            EngineArgs(
                model=settings["model"],
                skip_tokenizer_init=True,  # texts are the other end's business
                dtype=settings["dtype"],
                max_model_len=settings["max_model_len"],
                max_num_seqs=settings["slots"],
                enable_prefix_caching=True,
                # Random numbers of a prompt taken in pieces are wound back, which generators of a CPU cannot do.
                enable_chunked_prefill=None if _on_gpu() else False,
                max_num_batched_tokens=None if _on_gpu() else max(settings["max_model_len"], 2048),
                enforce_eager=True,  # graphs would hold on to the weights that they were captured with
                logprobs_mode="processed_logprobs",  # of the distribution that was sampled
                max_logprobs=settings["max_logprobs"],
                gpu_memory_utilization=settings["gpu_memory_utilization"],
                disable_log_stats=True,
                async_scheduling=False,  # a token that nobody waits for is never computed
                trust_remote_code=False,
            )
        )
        self._names = _names(Path(settings["model"]))
        self._version = 0
        self._jobs: dict[str, tuple[Mapping[str, Any], StopWatch]] = {}

    def serve(self, requests: queue.SimpleQueue[str | None]) -> None:
        """Until the other end closes the pipe."""
        while True:
            while not self._jobs or not requests.empty():
                line = requests.get()
                if line is None:
                    return
                job = json.loads(line)
                try:
                    getattr(self, f"_{job['do']}")(job)
                except Exception as error:  # the other end decides what a refused request means
                    self._say({"id": job.get("id"), "problem": f"{type(error).__name__}: {error}"})
            for output in self._engine.step():
                self._advance(output)

    def _say(self, answer: Mapping[str, Any]) -> None:
        print(json.dumps(answer), file=self._answers, flush=True)

    def _sample(self, job: Mapping[str, Any]) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        name, path = str(job["id"]), job["tokens"]
        watch = StopWatch(self._tokenizer, job["stop"])
        for token in path[len(path) - job["start"] :]:
            watch.completes(token)
        params = SamplingParams(
            temperature=job["temperature"],
            top_k=job["top_k"],
            top_p=job["top_p"],
            seed=job["seed"],
            max_tokens=job["max_tokens"],
            logprobs=job["top_k"],  # of the kept ones; 0: of the drawn token only
            stop_token_ids=job["eos"],
            ignore_eos=True,  # the other end says what ends a completion
            detokenize=False,
            output_kind=RequestOutputKind.CUMULATIVE,
        )
        # Keys of other weights carry another salt, so that none of them is ever found.
        prompt = {"prompt_token_ids": path, "cache_salt": f"weights-{self._version}"}
        self._engine.add_request(name, prompt, params)
        self._jobs[name] = job, watch

    def _advance(self, output: Any) -> None:
        """One more token of one request, which may complete a stop string."""
        if output.request_id not in self._jobs:
            return
        job, watch = self._jobs[output.request_id]
        done = output.outputs[0]
        stopped = bool(done.token_ids) and watch.completes(int(done.token_ids[-1]))
        if not (stopped or output.finished):
            return
        if not output.finished:
            self._engine.abort_request([output.request_id])
        del self._jobs[output.request_id]
        tokens = [int(token) for token in done.token_ids]
        rows = done.logprobs
        kept = None
        if job["top_k"]:
            finite = float("-inf")
            kept = [sorted(int(token) for token, entry in row.items() if entry.logprob > finite) for row in rows]
        finish = "eos" if tokens[-1] in job["eos"] else "stop" if stopped else "length"
        self._say(
            {
                "id": job["id"],
                "tokens": tokens,
                "logprobs": [row[token].logprob for row, token in zip(rows, tokens, strict=True)],
                "kept": kept,
                "finish": finish,
                "version": self._version,
            }
        )

    def _abort(self, job: Mapping[str, Any]) -> None:
        if self._jobs.pop(str(job["id"]), None) is not None:
            self._engine.abort_request([str(job["id"])])

    def _load(self, job: Mapping[str, Any]) -> None:
        """New weights in place. vLLM fuses tensors: what arrived is fingerprinted, and nothing may be missing."""
        from safetensors.torch import load_file

        weights = load_file(job["path"])
        os.unlink(job["path"])
        if missing := sorted(self._names - set(weights)):
            raise ValueError(f"no weights came for {', '.join(missing[:3])}")
        # vLLM's own way of it: on a CPU a layer's weights are repacked and the plain ones are gone.
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights.items())})
        self._engine.apply_model(_repack_heads)
        self._engine.reset_prefix_cache()
        self._version = job["version"]
        self._say({"loaded": fingerprint(weights), "digests": digests(weights)})

    def _stop(self, job: Mapping[str, Any]) -> None:
        raise SystemExit(0)


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _repack_heads(model: Any) -> None:
    """On a CPU the output head computes with a packed copy of its weight, which vLLM's reload leaves as it was."""
    for module in model.modules():
        if hasattr(module, "cpu_linear") and getattr(module, "weight", None) is not None and module.weight.numel():
            module.quant_method.process_weights_after_loading(module)


def _names(model: Path) -> set[str]:
    """Tensors of the model's files: what a load must bring."""
    from safetensors import safe_open

    found: set[str] = set()
    for path in model.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found.update(file.keys())
    return found


def main() -> None:
    """Serve; settings are the first line of stdin."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM prints
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    settings = json.loads(sys.stdin.readline())

    def listen() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)  # the other end is gone

    try:
        server = Server(settings, answers)
    except Exception as error:
        print(json.dumps({"problem": f"{type(error).__name__}: {error}"}), file=answers, flush=True)
        raise
    from vllm import __version__

    print(json.dumps({"ready": __version__}), file=answers, flush=True)
    threading.Thread(target=listen, daemon=True).start()
    server.serve(lines)


if __name__ == "__main__":
    main()
