"""Weights from the learner to an engine of the same process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlkit.errors import SyncError
from rlkit.policy.base import Engine
from rlkit.sync.base import SyncReport
from rlkit.sync.fingerprint import digests, fingerprint
from rlkit.sync.link import copy_speed, probe

__all__ = ["LocalSync", "confirm"]


def confirm(sent: str, confirmed: Sequence[str], version: int) -> None:
    """Raise `SyncError` unless every engine runs what was sent."""
    for index, found in enumerate(confirmed):
        if found != sent:
            raise SyncError(
                f"engine {index} runs weights {found} after version {version} was sent as {sent}; "
                "a tensor was lost, changed or cast on the way"
            )


class LocalSync:
    """One engine, in this process: the learner's tensors are read in place."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._link = 0.0

    def push(self, learner: Any) -> SyncReport:
        """Load the learner's weights into the engine and compare fingerprints."""
        weights: Mapping[str, Any] = learner.weights()
        sent = fingerprint(weights)
        confirm(sent, [self.engine.load_weights(weights, learner.version)], learner.version)
        num_bytes = sum(w.numel() * w.element_size() for w in weights.values())
        if not self._link:
            source = probe(num_bytes)
            self._link = copy_speed(lambda: source, num_bytes)
        return SyncReport(
            version=learner.version,
            num_bytes=num_bytes,
            sent_bytes=num_bytes,
            link_bytes_per_s=self._link,
            fingerprint=sent,
        )

    def digests(self, learner: Any) -> dict[str, str]:
        """Tensor -> digest of what `push` would send."""
        return digests(learner.weights())
