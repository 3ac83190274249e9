"""vLLM as an engine, in a process and an environment of its own: its pins are not ours.

    VllmEngine ── JSON lines ──> rlkit.policy.vllm_server in `.venv-vllm` ──> vLLM
               ── weights: a safetensors file in shared memory ──────────>

What holds as for `hf`: tokens in and tokens out, log-probs of the distribution that was sampled, a version per
completion, weights replaced in place, no keys of other weights. What does not: numbers depend on the batch around a
sample, so a run cannot be repeated to the bit. vLLM fuses tensors, so the fingerprint is of what arrived; whether it is
also what runs is for the canary to say (`rlkit/canary.py`).
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from transformers import AutoTokenizer, GenerationConfig

from rlkit.errors import EngineError
from rlkit.policy.base import Completion, EngineContext, SampleRequest
from rlkit.policy.tokens import Tokenizer, decode
from rlkit.randomness import stream
from rlkit.records import SamplingState
from rlkit.settings import at_least
from rlkit.sync.arrays import to_tensor

__all__ = ["INSTALL", "VllmEngine"]

INSTALL = "launch/setup-vllm"
"""Makes the environment."""
SHARED_MEMORY = Path("/dev/shm")
ROOT = Path(__file__).parents[2]


class VllmEngine:
    """Samples with vLLM; see `rlkit.policy.base.Engine`."""

    can_continue = True
    """A turn may be sampled in pieces. Draws of the pieces are not those of the whole: vLLM's are not addressed."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """Settings of the engine."""

        python: str = ".venv-vllm/bin/python"
        """Interpreter of vLLM's environment, from the working folder or the checkout."""
        slots: int = 64
        """Samples that decode at the same time."""
        max_top_k: int = 64
        """Largest `rollout.top_k`: so many kept tokens are asked for at each position."""
        kv_cache_gib: int = 1
        """Keys and values on a CPU."""
        gpu_memory_utilization: float = 0.9
        """Share of a GPU that vLLM takes for itself."""
        threads: int = 1
        """Threads of vLLM on a CPU."""
        start_s: float = 600.0
        """Patience with its start, seconds; about a minute on a CPU."""

        def __post_init__(self) -> None:
            at_least(self, 1, "slots", "max_top_k", "kv_cache_gib", "threads")
            if not 0 < self.gpu_memory_utilization <= 1:
                raise ValueError(f"gpu_memory_utilization: {self.gpu_memory_utilization} is not in (0, 1]")

    def __init__(
        self,
        config: Config,
        *,
        model_dir: Path,
        seed: int,
        dtype: str = "float32",
        max_model_len: int | None = None,
        eos_ids: Sequence[int] | None = None,
    ) -> None:
        """Start vLLM and wait for it. Raises `EngineError` where its environment is missing or it does not start."""
        self._config, self._seed, self._version = config, seed, 0
        self._tokenizer: Tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
        self._eos = sorted(_end_ids(model_dir, self._tokenizer) if eos_ids is None else set(eos_ids))
        self._waiting: dict[int, tuple[asyncio.AbstractEventLoop, asyncio.Future[Mapping[str, Any]]]] = {}
        self._next = 0
        self._digests: dict[str, str] = {}
        self._loaded = threading.Event()
        self._answer: Mapping[str, Any] = {}
        self._folder = tempfile.TemporaryDirectory(
            prefix="rlkit-weights-", dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
        )
        self._process = self._start()
        settings = {
            "model": str(model_dir),
            "dtype": dtype,
            "max_model_len": max_model_len,
            "slots": config.slots,
            "max_logprobs": config.max_top_k,
            "gpu_memory_utilization": config.gpu_memory_utilization,
        }
        self._send(settings)
        timer = threading.Timer(config.start_s, self._process.kill)
        timer.start()
        first = self._read()
        timer.cancel()
        if first is None or "problem" in first:
            self.close()
            why = f"no answer within engine.start_s={config.start_s:g}" if first is None else first["problem"]
            raise EngineError(f"vLLM did not start: {why}; try `{INSTALL}` again, or engine.kind=hf")
        self.vllm_version = str(first["ready"])
        """Of the package."""
        self._reader = threading.Thread(target=self._listen, daemon=True, name="rlkit-vllm")
        self._reader.start()

    @classmethod
    def build(cls, config: Config, context: EngineContext) -> VllmEngine:
        """The engine of a rollout worker, as a recipe names it."""
        if context.lora.rank:
            raise EngineError("model.lora.rank: adapters are not sent to engine 'vllm'; use engine.kind=hf or rank 0")
        return cls(config, model_dir=context.model_dir, seed=context.seed, dtype=context.dtype)

    @property
    def version(self) -> int:
        """Version of the weights it runs."""
        return self._version

    async def sample(self, request: SampleRequest) -> Completion:
        """Sample one completion; a cancelled call is aborted in vLLM. Raises `EngineError`."""
        sampling = request.sampling
        where = f"task {request.task_id!r}, sample {request.sample_index}, turn {request.turn}"
        if sampling.top_p < 1 and not sampling.top_k and sampling.temperature:
            raise EngineError(
                f"rollout.top_p: {sampling.top_p} without rollout.top_k: vLLM tells which tokens it kept only up to a "
                f"number of them; add rollout.top_k, at most engine.max_top_k={self._config.max_top_k}"
            )
        if sampling.top_k > self._config.max_top_k:
            raise EngineError(f"rollout.top_k: {sampling.top_k} is above engine.max_top_k={self._config.max_top_k}")
        if request.max_tokens < 1 or not len(request.token_ids):
            raise EngineError(f"{where}: {len(request.token_ids)} tokens, max_tokens {request.max_tokens}")
        number, self._next = self._next, self._next + 1
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Mapping[str, Any]] = loop.create_future()
        self._waiting[number] = loop, future
        address = (self._seed, self._version, request.task_id, request.sample_index, request.turn, request.start)
        greedy = sampling.temperature == 0
        self._send(
            {
                "do": "sample",
                "id": number,
                "tokens": request.token_ids.tolist(),
                "start": request.start,
                "max_tokens": request.max_tokens,
                "stop": list(request.stop),
                "eos": self._eos,
                "temperature": sampling.temperature,
                "top_k": 0 if greedy else sampling.top_k,
                "top_p": 1.0 if greedy else sampling.top_p,
                "seed": int(stream("vllm", *address).integers(2**31)),
            }
        )
        try:
            answer = await future
        except asyncio.CancelledError:
            self._send({"do": "abort", "id": number})
            raise
        finally:
            self._waiting.pop(number, None)
        if "problem" in answer:
            raise EngineError(f"{where}: {answer['problem']}")
        return Completion(
            token_ids=np.array(answer["tokens"], np.int32),
            behavior_logprobs=np.array(answer["logprobs"], np.float32),
            sampling=_state(sampling.temperature or 1.0, answer["kept"]),
            policy_version=answer["version"],
            text=decode(self._tokenizer, answer["tokens"]),
            finish=answer["finish"],
        )

    def release(self, task_id: str) -> None:
        """vLLM forgets what it has no room for."""

    def load_weights(self, weights: Mapping[str, Any], version: int) -> str:
        """Replace the weights in place and drop every key; the fingerprint of what arrived.

        Raises `EngineError` while samples are in flight, and for weights that do not fit.
        """
        if self._waiting:
            raise EngineError(f"load_weights: {len(self._waiting)} samples of version {self._version} are in flight")
        path = Path(self._folder.name) / f"{version}.safetensors"
        tensors = {name: w if hasattr(w, "data_ptr") else to_tensor(w) for name, w in weights.items()}
        # Tied tensors come under several names, which a file cannot hold: a copy each.
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path)
        self._loaded.clear()
        self._send({"do": "load", "path": str(path), "version": version})
        while not self._loaded.wait(timeout=1.0):
            if self._process.poll() is not None:
                raise EngineError(f"vLLM ended with {self._process.returncode} while it took version {version}")
        if "problem" in self._answer:
            raise EngineError(f"version {version}: {self._answer['problem']}")
        self._version, self._digests = version, dict(self._answer["digests"])
        return str(self._answer["loaded"])

    def digests(self) -> dict[str, str]:
        """Tensor -> digest of what arrived last; see the head of this file."""
        return self._digests

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def _start(self) -> subprocess.Popen[str]:
        written = Path(self._config.python).expanduser()
        found = next((path for path in (written, ROOT / written) if path.is_file()), None)
        if found is None:
            raise EngineError(f"engine.python: no file '{written}'; `{INSTALL}` makes vLLM's environment")
        threads = str(self._config.threads)
        env = os.environ | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": threads,
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in that process, so that weights are replaced in place
            "VLLM_CPU_KVCACHE_SPACE": str(self._config.kv_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # threads share the cores with whatever else runs
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        env.pop("MKL_CBWR", None)  # strict arithmetic is ours; vLLM has its own kernels
        return subprocess.Popen(
            [str(found), "-m", "rlkit.policy.vllm_server"],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sys.stderr if sys.stderr is sys.__stderr__ else None,
            text=True,
        )

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            print(json.dumps(message), file=self._process.stdin, flush=True)
        except (BrokenPipeError, ValueError):
            raise EngineError(f"vLLM ended with {self._process.poll()}") from None

    def _read(self) -> Mapping[str, Any] | None:
        """The next answer; None where there will be none."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: Mapping[str, Any] | None = json.loads(line) if line else None
        return answer

    def _listen(self) -> None:
        """In a thread: answers to whom they are for, until vLLM ends."""
        while (answer := self._read()) is not None:
            if answer.get("id") is None:
                self._answer = answer
                self._loaded.set()
            else:
                self._deliver(answer["id"], answer)
        for number in list(self._waiting):
            self._deliver(number, {"problem": "vLLM ended"})

    def _deliver(self, number: int, answer: Mapping[str, Any]) -> None:
        if (found := self._waiting.get(number)) is not None:
            loop, future = found
            loop.call_soon_threadsafe(lambda: None if future.done() else future.set_result(answer))


def _state(temperature: float, kept: Sequence[Sequence[int]] | None) -> SamplingState:
    if kept is None:
        return SamplingState(temperature=temperature)
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in kept])]).astype(np.int32)
    return SamplingState(
        temperature=temperature, support_offsets=offsets, support_ids=np.concatenate(kept).astype(np.int32)
    )


def _end_ids(model_dir: Path, tokenizer: Any) -> set[int]:
    """End tokens of the generation config and of the tokenizer, as engine `hf` reads them."""
    found: set[int] = set()
    sources = [tokenizer]
    if (model_dir / "generation_config.json").is_file():
        sources.append(GenerationConfig.from_pretrained(model_dir, local_files_only=True))
    for source in sources:
        ids = getattr(source, "eos_token_id", None)
        found.update([ids] if isinstance(ids, int) else ids or ())
    return found
