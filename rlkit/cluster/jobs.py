"""Jobs on a cluster that runs already, through its job server, which is part of Ray's dashboard."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import ray
from aiohttp import ClientError
from ray.job_submission import JobStatus, JobSubmissionClient

from rlkit.errors import RlkitError

__all__ = ["RAY_VERSION", "follow", "submit"]

RAY_VERSION: str = ray.__version__


def submit(address: str, entrypoint: str, runtime_env: Mapping[str, Any]) -> str:
    """Upload, start, and return the job's id. Raises `RlkitError` where no job server answers."""
    return str(_client(address).submit_job(entrypoint=entrypoint, runtime_env=dict(runtime_env)))


def follow(address: str, job: str) -> int:
    """Print the job's output until it ends; 0 if it succeeded. Raises `RlkitError` where the job server dies first."""
    client = _client(address)

    async def tail() -> None:
        async for text in client.tail_job_logs(job):
            print(text, end="", flush=True)

    try:
        asyncio.run(tail())
        status = client.get_job_status(job)
    except (OSError, RuntimeError, ClientError) as error:
        raise RlkitError(
            f"--address: the job server at '{address}' is gone ({error}); job {job} may go on without it: follow it "
            f"with `ray job logs --address={address} --follow {job}`, or, where the head died too, submit the recipe "
            "again: a run goes on from its newest checkpoint"
        ) from error
    print(f"job {job}: {status.value.lower()}")
    return 0 if status == JobStatus.SUCCEEDED else 1


def _client(address: str) -> JobSubmissionClient:
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RlkitError(
            f"--address: no job server answers at '{address}' ({reason}); it is part of the head's dashboard: "
            "start the head with `ray start --head --dashboard-host=0.0.0.0`, and read its dashboard.log if it is dead"
        ) from error
