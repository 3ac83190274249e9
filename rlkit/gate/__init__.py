"""The gate: tries to refute what rewards promise, before a run trusts them.

`probes.py` writes groups to try a reward on, `variants.py` rewrites trajectories without making them better,
`checks.py` compares values, `faults.py` makes services fail, `report.py` says what was found.
"""

from rlkit.gate.checks import check_rewards
from rlkit.gate.report import Finding, GateReport

__all__ = ["Finding", "GateReport", "check_rewards"]
