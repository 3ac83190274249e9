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
    fingerprint: str
    """What the learner sent and every engine confirmed."""
