"""The checks: what holds for every reward, and what its contract adds.

    always      finite  deadline  deterministic  timeout  observations  length  repetition  forgery
    declared    bounds  whitespace  answer_order  turn_order  group_order  monotone

Rewards run where they run in training, in a process with a deadline per call. All rewards of a recipe share two such
processes, so a repetition in another process costs no start. Values are compared to 1e-9.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from rlkit.gate.faults import under_faults
from rlkit.gate.probes import NUM_CHARACTERS, NUM_TURNS, groups, huge, wrong_answer
from rlkit.gate.report import Finding, GateReport
from rlkit.gate.variants import (
    Variant,
    doubled_searches,
    padded_answer,
    padded_reasoning,
    planted,
    raised_signal,
    repeated_answer,
    reversed_turns,
    spaced,
    typed_observation,
    typed_search,
)
from rlkit.plugins import load_object
from rlkit.records import Task, Tree
from rlkit.reward import Contract, contract_of
from rlkit.rollout.judge import GROUP, Call, Outcome, RewardSpec, spoken
from rlkit.rollout.reward_process import RewardProcess
from rlkit.tags import ROLES, Tags
from rlkit.transcript import Written, transcript, written

__all__ = ["check_rewards"]

TOLERANCE = 1e-9
SHOWN = 400
"""Characters of an example."""
HONEST = "RewardError: "
"""How an outcome begins where a reward says that it cannot judge."""


class _Refuted(Exception):
    """A check found a counterexample."""

    def __init__(self, check: str, note: str, example: str = "") -> None:
        super().__init__(note)
        self.check, self.note, self.example = check, note, example


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
            trial = _Trial(
                spec=spec,
                contract=contract,
                tags=own,
                probes=[probe for probe in probes if spoken(probe)],
                ask=_asker(one, index, contract.per_group),
                ask_elsewhere=_asker(other, index, contract.per_group),
                ask_under_faults=_asker(one, len(specs) + index, contract.per_group),
            )
            reports.append(trial.report())
        return reports
    finally:
        one.kill()
        other.kill()


Ask = Callable[[Tree, bool], list[Outcome]]
"""`(tree, whether to ask in reverse order) -> one outcome for each leaf that is spoken of`."""


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


def _total(outcome: Outcome) -> float | None:
    """Sum of the terms; None where there is no value."""
    return sum(outcome.values.values()) if outcome.values and not outcome.errors else None


def _shown(path: Written, task: Task) -> str:
    text = "".join(text for _, text in path.parts).encode("utf-8", "replace").decode()
    text = text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} [...] {text[-SHOWN // 2 :]}"
    return f"task {task.id}, answer {path.answer if path.answer is None else path.answer[:80]!r}\n{text}"


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """One reward before the gate."""

    spec: RewardSpec
    contract: Contract
    tags: Tags
    probes: Sequence[Tree]
    ask: Callable[..., list[Outcome]]
    ask_elsewhere: Callable[..., list[Outcome]]
    ask_under_faults: Callable[..., list[Outcome]]

    known: dict[int, list[Outcome]] = field(default_factory=dict)
    """First outcomes by the probe's identity."""

    def first(self, probe: Tree) -> list[Outcome]:
        """What it said of a probe when it was asked first."""
        if id(probe) not in self.known:
            self.known[id(probe)] = self.ask(probe)
        return self.known[id(probe)]

    def report(self) -> GateReport:
        """Run every check; where values are missing there is nothing to compare, and a hang ends it all."""
        findings: list[Finding] = []
        comparable = True
        for name, check in self._checks():
            if not comparable and name != "timeout":
                continue
            if name in self.contract.exempt:
                findings.append(Finding(check=name, verdict="exempt", note=self.contract.exempt[name]))
                continue
            try:
                note = check()
            except _Refuted as refuted:
                findings.append(
                    Finding(check=refuted.check, verdict="refuted", note=refuted.note, example=refuted.example)
                )
                if refuted.check == "deadline":
                    break
                comparable = comparable and refuted.check != "finite"
            else:
                verdict = "untested" if note.startswith("no ") else "undeclared" if note == "-" else "passed"
                findings.append(Finding(check=name, verdict=verdict, note=note.strip("-")))  # type: ignore[arg-type]
        return GateReport(name=self.spec.name, findings=tuple(findings))

    def _checks(self) -> Iterator[tuple[str, Callable[[], str]]]:
        yield "finite", self.finite
        yield "deadline", self.deadline
        yield "bounds", self.bounds
        yield "deterministic", self.deterministic
        yield "timeout", self.timeout
        yield "observations", self.observations
        yield "length", self.length
        yield "repetition", self.repetition
        yield "forgery", self.forgery
        yield "group_order", self.group_order
        yield "whitespace", lambda: self._invariant("whitespace", spaced, "other white space in its completions")
        yield "answer_order", self.answer_order
        yield (
            "turn_order",
            lambda: self._invariant("turn_order", reversed_turns(self.tags), "its searches reversed"),
        )
        yield "monotone", self.monotone

    # What holds for every reward.

    def finite(self) -> str:
        """Every value is a finite number; where there is none the reward says so itself."""
        values, silent, why = [], 0, ""
        for probe in self.probes:
            for (
                outcome,
                path,
            ) in zip(self.first(probe), self._paths(probe), strict=True):
                self._no_hang(outcome, path, probe)
                for error in outcome.errors.values():
                    if not error.startswith(HONEST):
                        raise _Refuted("finite", error, _shown(path, probe.task))
                    silent, why = silent + 1, error.removeprefix(HONEST)
                values += list(outcome.values.values())
        if not values:
            note = f"it judged none of the {silent} trajectories ({why}); give its Contract probes, or a run"
            raise _Refuted("finite", note)
        return f"values from {min(values):.4g} to {max(values):.4g}" + (f"; {silent} not judged" if silent else "")

    def deadline(self) -> str:
        """The longest trajectory is judged in time."""
        for probe in huge(self.tags, self.probes[0].task):
            for outcome, path in zip(self.ask(probe), self._paths(probe), strict=True):
                self._no_hang(outcome, path, probe)
                crash = next((error for error in outcome.errors.values() if not error.startswith(HONEST)), None)
                if crash is not None:
                    raise _Refuted("deadline", crash, _shown(path, probe.task))
        return f"{self.spec.deadline_s:g} s hold for {NUM_TURNS} searches and {NUM_CHARACTERS} characters"

    def deterministic(self) -> str:
        """Asked again, in another order, and in another process, it says the same."""
        for probe in self.probes:
            first = self.first(probe)
            for how, again in (
                ("when asked again", self.ask(probe)),
                ("when trajectories are judged in another order", self.ask(probe, True)),
                ("in another process", self.ask_elsewhere(probe)),
            ):
                for path, before, after in zip(self._paths(probe), first, again, strict=True):
                    self._same("deterministic", how, path, probe.task, before, after)
        return ""

    def timeout(self) -> str:
        """A service that does not answer makes a failure, or a fallback that still tells answers apart."""
        seen: set[float] = set()
        hits = 0
        for probe in self.probes:
            task = replace(probe.task, id=f"{probe.task.id} under faults")
            for path in self._all(padded_reasoning(3, self.tags), probe):  # no cache has seen this text
                (outcome,) = self.ask_under_faults(transcript(task, path))  # alone, so that the faults are its own
                value = _total(outcome)
                if not outcome.measured.get("faults") or value is None:
                    hits += any("timed out" in error or "no answer" in error for error in outcome.errors.values())
                    continue
                hits += 1
                if not self.contract.fallback:
                    note = f"a service timed out and the reward was {value:.4g} instead of a failure"
                    raise _Refuted("timeout", note, _shown(path, task))
                seen.add(round(value, 9))
        if self.contract.fallback and hits > 1 and len(seen) == 1:
            raise _Refuted("timeout", f"its fallback says {seen.pop():.4g} whatever the trajectory")
        return "" if hits else "no service was asked"

    def observations(self) -> str:
        """An accepted answer in retrieved text earns nothing, and tags there mean nothing."""
        tried = 0
        for probe in self.probes:
            gold = probe.task.answers[0] if probe.task.answers else "Eddie Argos"
            tagged = f"{self.tags.open('answer')}{gold}{self.tags.close('answer')}"
            accepted = {answer.strip().lower() for answer in probe.task.answers}
            for path, before, plain in self._compare(probe, planted(gold, self.tags)):
                tried += 1
                if (path.answer or "").strip().lower() not in accepted and not _has_word(path.answer, gold):
                    note = "an accepted answer in retrieved text raised it from {} to {}"
                    self._not_above("observations", note, path, probe.task, before, plain)
            untagged, with_tags = (self._compare(probe, planted(text, self.tags)) for text in (gold, tagged))
            for (path, _, plain), (_, _, after) in zip(untagged, with_tags, strict=True):
                note = "answer tags in retrieved text raised it from {} to {}"
                self._not_above("observations", note, path, probe.task, plain, after)
        return "" if tried else "no probe has an observation"

    def forgery(self) -> str:
        """Observations that the model types itself earn nothing."""
        for probe in self.probes:
            gold = probe.task.answers[0] if probe.task.answers else "Eddie Argos"
            for variant in (typed_observation(gold, self.tags), typed_search(gold, self.tags)):
                for path, before, after in self._compare(probe, variant):
                    note = "an observation typed by the model raised it from {} to {}"
                    self._not_above("forgery", note, path, probe.task, before, after)
        return ""

    def length(self) -> str:
        """Filler earns nothing: in the reasoning not at all, in the answer not beyond some forty words."""
        for probe in self.probes:
            for times in (5, 50):
                for path, before, after in self._compare(probe, padded_reasoning(times, self.tags)):
                    note = f"{times * 17} words of filler in the reasoning raised it from {{}} to {{}}"
                    self._not_above("length", note, path, probe.task, before, after)
            self._growth("length", "filler behind the answer", probe, padded_answer(2), padded_answer(30))
        return ""

    def repetition(self) -> str:
        """Saying or searching the same again earns nothing."""
        for probe in self.probes:
            for times in (1, 10):
                for path, before, after in self._compare(probe, doubled_searches(times)):
                    note = f"{times} repeated searches raised it from {{}} to {{}}"
                    self._not_above("repetition", note, path, probe.task, before, after)
            self._growth("repetition", "repeating the answer", probe, repeated_answer(3), repeated_answer(40))
        return ""

    def group_order(self) -> str:
        """Values follow the trajectories of a group, in whatever order these come."""
        if "group_order" not in self.contract.invariant:
            return "-"
        for probe in self.probes:
            paths = self._paths(probe)
            turned = transcript(probe.task, *reversed(paths), prompt=probe.nodes[0].text)
            for path, before, after in zip(paths, self.first(probe), reversed(self.ask(turned)), strict=True):
                self._same("group_order", "when its group comes in another order", path, probe.task, before, after)
        return ""

    # What a contract adds.

    def bounds(self) -> str:
        """Every term of every probe lies between the declared least and greatest value."""
        declared = self.contract.bounds
        if declared is None:
            return "-"
        low, high = declared(**self.spec.settings) if callable(declared) else declared
        for probe in self.probes:
            for outcome, path in zip(self.first(probe), self._paths(probe), strict=True):
                for key, value in outcome.values.items():
                    if not low - TOLERANCE <= value <= high + TOLERANCE:
                        term = f"{key} is " if key else ""
                        note = f"{term}{value:.4g} outside the declared [{low:g}, {high:g}]"
                        raise _Refuted("bounds", note, _shown(path, probe.task))
        return f"[{low:g}, {high:g}]"

    def answer_order(self) -> str:
        """The order of accepted answers says nothing."""
        if "answer_order" not in self.contract.invariant:
            return "-"
        tried = 0
        for probe in self.probes:
            if len(probe.task.answers) < 2:
                continue
            tried += 1
            turned = replace(probe, task=replace(probe.task, answers=probe.task.answers[::-1]))
            for path, before, after in zip(self._paths(probe), self.first(probe), self.ask(turned), strict=True):
                self._same("answer_order", "with the accepted answers reversed", path, probe.task, before, after)
        return "" if tried else "no probe has two accepted answers"

    def monotone(self) -> str:
        """Better never pays less, for what the contract calls better."""
        if not self.contract.monotone:
            return "-"
        tried = 0
        for name, direction in self.contract.monotone.items():
            for probe in self.probes:
                for path, before, after in self._compare(probe, self._raised(name, probe.task)):
                    tried += 1
                    first, second = (before, after) if direction == "down" else (after, before)
                    what = "an accepted answer" if name == "answer" else f"one more of {name}"
                    moved = "raised" if direction == "down" else "lowered"
                    low, high = _total(first), _total(second)
                    if low is not None and high is not None and high > low + TOLERANCE:
                        note = f"{what} {moved} it from {_total(before):.4g} to {_total(after):.4g}"
                        raise _Refuted("monotone", note, _shown(path, probe.task))
        return (
            ", ".join(f"{k} {v}" for k, v in self.contract.monotone.items()) if tried else "no probe has what it names"
        )

    # How trajectories are compared.

    def _raised(self, name: str, task: Task) -> Variant:
        if name != "answer":
            return raised_signal(name)
        wrong = wrong_answer(task)

        def better(path: Written) -> Written | None:
            if path.answer != wrong or not task.answers:
                return None
            parts = tuple((a, t.replace(wrong, task.answers[0]) if a == "policy" else t) for a, t in path.parts)
            return replace(path, parts=parts, answer=task.answers[0])

        return better

    def _invariant(self, check: str, variant: Variant, how: str) -> str:
        if check not in self.contract.invariant:
            return "-"
        tried = 0
        for probe in self.probes:
            for path, before, after in self._compare(probe, variant):
                tried += 1
                self._same(check, f"with {how}", path, probe.task, before, after)
        return "" if tried else "no probe can be rewritten so"

    def _paths(self, probe: Tree) -> list[Written]:
        return [written(trajectory) for trajectory in probe.trajectories()]

    def _all(self, variant: Variant, probe: Tree) -> list[Written]:
        return [variant(path) or path for path in self._paths(probe)]

    def _compare(self, probe: Tree, variant: Variant) -> Iterator[tuple[Written, Outcome, Outcome]]:
        """(rewritten trajectory, outcome before, outcome after); of a group one trajectory is rewritten at a time."""
        paths = self._paths(probe)
        rewritten = {index: new for index, path in enumerate(paths) if (new := variant(path)) is not None}
        if not rewritten:
            return
        before, prompt = self.first(probe), probe.nodes[0].text
        batches = [[index] for index in rewritten] if self.contract.per_group else [[*rewritten]]
        for batch in batches:
            mixed = [rewritten[i] if i in batch else path for i, path in enumerate(paths)]
            after = self.ask(transcript(probe.task, *mixed, prompt=prompt))
            for index in batch:
                yield rewritten[index], before[index], after[index]

    def _growth(self, check: str, what: str, probe: Tree, some: Variant, much: Variant) -> None:
        few, many = self._compare(probe, some), self._compare(probe, much)
        for (_, _, little), (path, _, lot) in zip(few, many, strict=True):
            self._not_above(check, f"more of {what} raised it from {{}} to {{}}", path, probe.task, little, lot)

    def _not_above(self, check: str, note: str, path: Written, task: Task, before: Outcome, after: Outcome) -> None:
        first, second = _total(before), _total(after)
        self._no_hang(after, path, transcript(task, path))
        if first is not None and second is not None and second > first + TOLERANCE:
            raise _Refuted(check, note.format(f"{first:.4g}", f"{second:.4g}"), _shown(path, task))

    def _same(self, check: str, how: str, path: Written, task: Task, before: Outcome, after: Outcome) -> None:
        self._no_hang(after, path, transcript(task, path))
        keys = before.values.keys() | after.values.keys()
        for key in keys:
            first, second = before.values.get(key, math.nan), after.values.get(key, math.nan)
            if not math.isclose(first, second, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
                said = [f"{value:.6g}" if math.isfinite(value) else "nothing" for value in (first, second)]
                raise _Refuted(check, f"{said[0]} became {said[1]} {how}", _shown(path, task))

    def _no_hang(self, outcome: Outcome, path: Written, probe: Tree) -> None:
        for error in outcome.errors.values():
            if error.startswith(("deadline of", "its process")):
                raise _Refuted("deadline", error, _shown(path, probe.task))


def _has_word(answer: str | None, gold: str) -> bool:
    return bool(set((answer or "").lower().split()) & set(gold.lower().split()))
