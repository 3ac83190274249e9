"""What the gate found of one reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "GateReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The verdict of one check."""

    check: str
    """Its name, e.g. `observations`."""
    verdict: Literal["passed", "refuted", "exempt", "undeclared", "untested"]
    """`exempt` by the reward's own word, `undeclared` because it promises nothing of the kind, `untested` because no
    probe could tell."""
    note: str = ""
    """Why, in one line."""
    example: str = ""
    """The trajectory that refutes it, shortened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """All findings of one reward."""

    name: str
    findings: tuple[Finding, ...]

    @property
    def refuted(self) -> tuple[Finding, ...]:
        """What speaks against it; empty: it passes."""
        return tuple(finding for finding in self.findings if finding.verdict == "refuted")

    def __str__(self) -> str:
        """A table with the examples of what was refuted."""
        width = max(len(finding.check) for finding in self.findings)
        lines = [f"{self.name}: {'refused' if self.refuted else 'passed'}"]
        for finding in self.findings:
            lines.append(f"  {finding.check:<{width}}  {finding.verdict:<10}  {finding.note}".rstrip())
            if finding.example:
                lines += [f"  {'':<{width}}    | {line}" for line in finding.example.splitlines()]
        return "\n".join(lines)

    @property
    def line(self) -> str:
        """The first refutation, for an error message."""
        first = self.refuted[0]
        example = f"; example: {' '.join(first.example.split())}" if first.example else ""
        return f"refused by the gate: {first.check}: {first.note}{example}"
