"""The driver's end of the retriever that all workers share, where its index may follow the run.

The actor that holds it may die; Ray builds it anew from the recipe, as it was before the run (how often:
`retriever_actor`). The driver knows what it searched and how much it had logged when it was last looked after, and
brings it back there. What was sampled in between may have searched something else, and is sampled again:
`RayRollouts.collect` asks with `unbroken`.
"""

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
        self._born = self._ask("born")
        self._state: dict[str, Any] = self._ask("index_state")
        self._phase: Phase = "train"

    def index_version(self) -> str:
        """Fingerprint of what is searched now."""
        return str(self._looked_after("index_version"))

    def enter(self, phase: Phase) -> None:
        """Searches from now on belong to this phase."""
        self._phase = phase
        self._looked_after("enter", phase)

    def refresh(self) -> IndexReport:
        """Build the index anew from what was retrieved in training so far."""
        found: IndexReport = self._looked_after("refresh")
        return found

    def index_state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return dict(self._looked_after("index_state"))

    def restore_index(self, state: Mapping[str, Any] | None, *, resume: bool = True) -> None:
        """Search what `state` searched."""
        self._looked_after("restore_index", state, resume=resume)

    def unbroken(self) -> bool:
        """Whether the actor is the one that it was; if so, what was searched counts, else it is brought back."""
        state = self._ask("index_state")
        if self._mended():
            return False
        self._state = state
        return True

    def _looked_after(self, method: str, *arguments: Any, **settings: Any) -> Any:
        """Ask the one that was looked after last, and remember where that leaves it."""
        while True:
            self._mended()
            found = self._ask(method, *arguments, **settings)
            state = self._ask("index_state")
            if self._ask("born") == self._born:  # else another one answered, on its way up
                self._state = state
                return found

    def _mended(self) -> bool:
        """Whether another actor was found in the place of the known one; it is where that one was, then."""
        born = self._ask("born")
        if born == self._born:
            return False
        self._ask("restore_index", self._state, resume=True)
        self._ask("enter", self._phase)
        self._born = born
        return True

    def _ask(self, method: str, *arguments: Any, **settings: Any) -> Any:
        try:
            return ray.get(self.actor.ask.remote(method, *arguments, **settings))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
