"""The driver's end of the retriever that all workers share: its index may follow the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray

from rlkit.retriever import IndexReport, Phase

__all__ = ["RayIndex"]


class RayIndex:
    """`Refreshable`, in the actor that holds the retriever. What it raises there is raised here."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def index_version(self) -> str:
        """Fingerprint of what is searched now."""
        return str(self._ask("index_version"))

    def enter(self, phase: Phase) -> None:
        """Searches from now on belong to this phase."""
        self._ask("enter", phase)

    def refresh(self) -> IndexReport:
        """Build the index anew from what was retrieved in training so far."""
        found: IndexReport = self._ask("refresh")
        return found

    def index_state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return dict(self._ask("index_state"))

    def restore_index(self, state: Mapping[str, Any] | None, *, resume: bool = True) -> None:
        """Search what `state` searched."""
        self._ask("restore_index", state, resume=resume)

    def _ask(self, method: str, *arguments: Any, **settings: Any) -> Any:
        try:
            return ray.get(self.actor.ask.remote(method, *arguments, **settings))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
