"""The gate: tries to refute what rewards promise, before a run trusts them.

`probes.py` writes groups to try a reward on, `variants.py` rewrites trajectories without making them better,
`trial.py` asks a reward and compares its values, `checks.py` says what must hold, `faults.py` makes services fail,
`gate.py` runs it all, `report.py` says what was found.
"""

from rlkit.gate.gate import check_rewards
from rlkit.gate.report import Finding, GateReport

__all__ = ["Finding", "GateReport", "check_rewards"]
