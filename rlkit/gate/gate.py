"""The gate itself: rewards are tried one after the other, each by every check, in processes like those of training.

All rewards of a recipe share two processes with a deadline per call, so a repetition in another process costs no start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rlkit.gate.checks import CHECKS
from rlkit.gate.faults import under_faults
from rlkit.gate.probes import groups
from rlkit.gate.report import Finding, GateReport
from rlkit.gate.trial import Ask, Refuted, Trial
from rlkit.plugins import load_object
from rlkit.records import Task, Tree
from rlkit.reward import contract_of
from rlkit.rollout.judge import GROUP, Call, Outcome, RewardSpec, spoken
from rlkit.rollout.reward_process import RewardProcess
from rlkit.tags import ROLES, Tags
from rlkit.transcript import transcript, written

__all__ = ["check_rewards"]


def check_rewards(
    specs: Sequence[RewardSpec],
    *,
    tags: Tags | None = None,
    tasks: Sequence[Task] = (),
    stored: Sequence[Tree] = (),
    allow: Sequence[str] = (),
) -> list[GateReport]:
    """Try to refute every reward. Raises `RecipeError` for one that cannot be imported.

    `tags` are the environment's where a reward has no `tags` of its own; `tasks` stand in for the made-up question;
    `stored` are trees of a run, tried beside the gate's own groups; `allow` are hosts that rewards may reach.
    """
    contracts = [contract_of(load_object(spec.spec, path=f"rewards[{i}].kind")) for i, spec in enumerate(specs)]
    faulty = [under_faults(spec, whole_group=c.per_group) for spec, c in zip(specs, contracts, strict=True)]
    one, other = RewardProcess([*specs, *faulty], allow=allow), RewardProcess(specs, allow=allow)
    try:
        one.start()
        other.start()
        reports = []
        for index, (spec, contract) in enumerate(zip(specs, contracts, strict=True)):
            own = _tags_of(spec, tags)
            known = groups(own, tasks) + [_retold(tree) for tree in (contract.probes() if contract.probes else ())]
            probes = [*known, *map(_retold, stored)]
            trial = Trial(
                spec=spec,
                contract=contract,
                tags=own,
                probes=[probe for probe in probes if spoken(probe)],
                ask=_asker(one, index, contract.per_group),
                ask_elsewhere=_asker(other, index, contract.per_group),
                ask_under_faults=_asker(one, len(specs) + index, contract.per_group),
            )
            reports.append(_report(trial))
        return reports
    finally:
        one.kill()
        other.kill()


def _report(trial: Trial) -> GateReport:
    """Run every check; where values are missing there is nothing to compare, and a hang ends it all."""
    findings: list[Finding] = []
    comparable = True
    for name, check in CHECKS.items():
        if not comparable and name != "timeout":
            continue
        if name in trial.contract.exempt:
            findings.append(Finding(check=name, verdict="exempt", note=trial.contract.exempt[name]))
            continue
        try:
            note = check(trial)
        except Refuted as refuted:
            findings.append(Finding(check=refuted.check, verdict="refuted", note=refuted.note, example=refuted.example))
            if refuted.check == "deadline":
                break
            comparable = comparable and refuted.check != "finite"
        else:
            verdict = "untested" if note.startswith("no ") else "undeclared" if note == "-" else "passed"
            findings.append(Finding(check=name, verdict=verdict, note=note.strip("-")))  # type: ignore[arg-type]
    return GateReport(name=trial.spec.name, findings=tuple(findings))


def _asker(process: RewardProcess, index: int, per_group: bool) -> Ask:
    def ask(tree: Tree, backwards: bool = False) -> list[Outcome]:
        if per_group:
            return process.run(tree, [Call(reward=index, leaf=GROUP)])[0]
        leaves = spoken(tree)[:: -1 if backwards else 1]
        found = [outcomes[0] for outcomes in process.run(tree, [Call(reward=index, leaf=leaf) for leaf in leaves])]
        return found[:: -1 if backwards else 1]

    return ask


def _tags_of(spec: RewardSpec, tags: Tags | None) -> Tags:
    """Names of the tags as the reward has them, else the environment's."""
    own = spec.settings.get("tags")
    if isinstance(own, Tags):
        return own
    names = {role: spec.settings[role] for role in ROLES if role in spec.settings}
    if isinstance(spec.settings.get("evidence_tag"), str):
        names["information"] = spec.settings["evidence_tag"]
    return replace(tags or Tags(), **names)


def _retold(tree: Tree) -> Tree:
    """A tree as text only, so that rewriting one trajectory changes nothing else; failed rollouts are left out."""
    return transcript(tree.task, *(written(tree.trajectory(leaf)) for leaf in spoken(tree)), prompt=tree.nodes[0].text)
