"""What a weight sync reports."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SyncReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport:
    """One transfer of weights from the learner to all engines."""

    version: int
    """Version that every engine runs now."""
    num_bytes: int
    """Size of the weights, once."""
    sent_bytes: int
    """What left the learner for one engine: fewer than `num_bytes` where only changes travel."""
    link_bytes_per_s: float
    """Measured once a run: what the slowest engine copies out of the learner's memory, or takes over the network."""
    fingerprint: str
    """What the learner sent and every engine confirmed."""
