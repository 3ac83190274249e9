"""The checks: what holds for every reward, and what its contract adds.

    always      finite  deadline  deterministic  timeout  observations  length  repetition  forgery  hindsight
    declared    bounds  whitespace  answer_order  turn_order  group_order  monotone

A check raises `Refuted`, or returns a note: one that begins with "no " decided nothing, "-" was not declared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import zip_longest

from rlkit.gate.probes import NUM_CHARACTERS, NUM_TURNS, huge, wrong_answer
from rlkit.gate.trial import TOLERANCE, Refuted, Trial, shown, total
from rlkit.gate.variants import (
    Variant,
    cut_short,
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
from rlkit.records import Task
from rlkit.transcript import Written, transcript

__all__ = ["CHECKS"]

HONEST = "RewardError: "
"""How an outcome begins where a reward says that it cannot judge."""


# What holds for every reward.


def finite(trial: Trial) -> str:
    """Every value is a finite number; where there is none the reward says so itself."""
    values, silent, why = [], 0, ""
    for probe in trial.probes:
        for outcome, path in zip(trial.first(probe), trial.paths(probe), strict=True):
            trial.no_hang(outcome, path, probe)
            for error in outcome.errors.values():
                if not error.startswith(HONEST):
                    raise Refuted("finite", error, shown(path, probe.task))
                silent, why = silent + 1, error.removeprefix(HONEST)
            values += list(outcome.values.values())
    if not values:
        note = f"it judged none of the {silent} trajectories ({why}); give its Contract probes, or a run"
        raise Refuted("finite", note)
    return f"values from {min(values):.4g} to {max(values):.4g}" + (f"; {silent} not judged" if silent else "")


def deadline(trial: Trial) -> str:
    """The longest trajectory is judged in time."""
    for probe in huge(trial.tags, trial.probes[0].task):
        for outcome, path in zip(trial.ask(probe), trial.paths(probe), strict=True):
            trial.no_hang(outcome, path, probe)
            crash = next((error for error in outcome.errors.values() if not error.startswith(HONEST)), None)
            if crash is not None:
                raise Refuted("deadline", crash, shown(path, probe.task))
    return f"{trial.spec.deadline_s:g} s hold for {NUM_TURNS} searches and {NUM_CHARACTERS} characters"


def deterministic(trial: Trial) -> str:
    """Asked again, in another order, and in another process, it says the same."""
    for probe in trial.probes:
        first = trial.first(probe)
        for how, again in (
            ("when asked again", trial.ask(probe)),
            ("when trajectories are judged in another order", trial.ask(probe, True)),
            ("in another process", trial.ask_elsewhere(probe)),
        ):
            for path, before, after in zip(trial.paths(probe), first, again, strict=True):
                trial.same("deterministic", how, path, probe.task, before, after)
    return ""


def timeout(trial: Trial) -> str:
    """A service that does not answer makes a failure, or a fallback that still tells answers apart."""
    seen: set[float] = set()
    hits = 0
    for probe in trial.probes:
        task = replace(probe.task, id=f"{probe.task.id} under faults")
        for path in trial.rewritten(padded_reasoning(3, trial.tags), probe):  # no cache has seen this text
            (outcome,) = trial.ask_under_faults(transcript(task, path))  # alone, so that the faults are its own
            value = total(outcome)
            if not outcome.measured.get("faults") or value is None:
                hits += any("timed out" in error or "no answer" in error for error in outcome.errors.values())
                continue
            hits += 1
            if not trial.contract.fallback:
                note = f"a service timed out and the reward was {value:.4g} instead of a failure"
                raise Refuted("timeout", note, shown(path, task))
            seen.add(round(value, 9))
    if trial.contract.fallback and hits > 1 and len(seen) == 1:
        raise Refuted("timeout", f"its fallback says {seen.pop():.4g} whatever the trajectory")
    return "" if hits else "no service was asked"


def observations(trial: Trial) -> str:
    """An accepted answer in retrieved text earns nothing, and tags there mean nothing."""
    tried = 0
    for probe in trial.probes:
        gold = probe.task.answers[0] if probe.task.answers else "Eddie Argos"
        tagged = f"{trial.tags.open('answer')}{gold}{trial.tags.close('answer')}"
        accepted = {answer.strip().lower() for answer in probe.task.answers}
        for path, before, plain in trial.compare(probe, planted(gold, trial.tags)):
            tried += 1
            if (path.answer or "").strip().lower() not in accepted and not _has_word(path.answer, gold):
                note = "an accepted answer in retrieved text raised it from {} to {}"
                trial.not_above("observations", note, path, probe.task, before, plain)
        untagged, with_tags = (trial.compare(probe, planted(text, trial.tags)) for text in (gold, tagged))
        for (path, _, plain), (_, _, after) in zip(untagged, with_tags, strict=True):
            note = "answer tags in retrieved text raised it from {} to {}"
            trial.not_above("observations", note, path, probe.task, plain, after)
    return "" if tried else "no probe has an observation"


def forgery(trial: Trial) -> str:
    """Observations that the model types itself earn nothing."""
    for probe in trial.probes:
        gold = probe.task.answers[0] if probe.task.answers else "Eddie Argos"
        for variant in (typed_observation(gold, trial.tags), typed_search(gold, trial.tags)):
            for path, before, after in trial.compare(probe, variant):
                note = "an observation typed by the model raised it from {} to {}"
                trial.not_above("forgery", note, path, probe.task, before, after)
    return ""


def length(trial: Trial) -> str:
    """Filler earns nothing: in the reasoning not at all, in the answer not beyond some forty words."""
    for probe in trial.probes:
        for times in (5, 50):
            for path, before, after in trial.compare(probe, padded_reasoning(times, trial.tags)):
                note = f"{times * 17} words of filler in the reasoning raised it from {{}} to {{}}"
                trial.not_above("length", note, path, probe.task, before, after)
        trial.no_growth("length", "filler behind the answer", probe, padded_answer(2), padded_answer(30))
    return ""


def repetition(trial: Trial) -> str:
    """Saying or searching the same again earns nothing."""
    for probe in trial.probes:
        for times in (1, 10):
            for path, before, after in trial.compare(probe, doubled_searches(times)):
                note = f"{times} repeated searches raised it from {{}} to {{}}"
                trial.not_above("repetition", note, path, probe.task, before, after)
        trial.no_growth("repetition", "repeating the answer", probe, repeated_answer(3), repeated_answer(40))
    return ""


def hindsight(trial: Trial) -> str:
    """What it says of a turn, where it speaks of turns, stays as it was when the last turn is cut off."""
    tried = 0
    for probe in trial.probes:
        for path, before, after in trial.compare(probe, cut_short):
            if before.turns is None or after.errors:
                continue
            tried += 1
            for turn, (one, other) in enumerate(zip_longest(before.turns[:-1], after.turns or (), fillvalue=math.nan)):
                if not math.isclose(one, other, abs_tol=TOLERANCE) and not (math.isnan(one) and math.isnan(other)):
                    note = f"of turn {turn} it says {one:.4g}, and {other:.4g} where the last turn is cut off"
                    raise Refuted("hindsight", note, shown(path, probe.task))
    return "" if tried else "no turn is spoken of"


# What a contract adds.


def bounds(trial: Trial) -> str:
    """Every term of every probe lies between the declared least and greatest value."""
    declared = trial.contract.bounds
    if declared is None:
        return "-"
    low, high = declared(**trial.spec.settings) if callable(declared) else declared
    for probe in trial.probes:
        for outcome, path in zip(trial.first(probe), trial.paths(probe), strict=True):
            for key, value in outcome.values.items():
                if not low - TOLERANCE <= value <= high + TOLERANCE:
                    term = f"{key} is " if key else ""
                    note = f"{term}{value:.4g} outside the declared [{low:g}, {high:g}]"
                    raise Refuted("bounds", note, shown(path, probe.task))
    return f"[{low:g}, {high:g}]"


def group_order(trial: Trial) -> str:
    """Values follow the trajectories of a group, in whatever order these come."""
    if "group_order" not in trial.contract.invariant:
        return "-"
    for probe in trial.probes:
        paths = trial.paths(probe)
        turned = transcript(probe.task, *reversed(paths), prompt=probe.nodes[0].text)
        for path, before, after in zip(paths, trial.first(probe), reversed(trial.ask(turned)), strict=True):
            trial.same("group_order", "when its group comes in another order", path, probe.task, before, after)
    return ""


def answer_order(trial: Trial) -> str:
    """The order of accepted answers says nothing."""
    if "answer_order" not in trial.contract.invariant:
        return "-"
    tried = 0
    for probe in trial.probes:
        if len(probe.task.answers) < 2:
            continue
        tried += 1
        turned = replace(probe, task=replace(probe.task, answers=probe.task.answers[::-1]))
        for path, before, after in zip(trial.paths(probe), trial.first(probe), trial.ask(turned), strict=True):
            trial.same("answer_order", "with the accepted answers reversed", path, probe.task, before, after)
    return "" if tried else "no probe has two accepted answers"


def whitespace(trial: Trial) -> str:
    """White space around words says nothing."""
    return _invariant(trial, "whitespace", spaced, "other white space in its completions")


def turn_order(trial: Trial) -> str:
    """The order of the searches says nothing."""
    return _invariant(trial, "turn_order", reversed_turns(trial.tags), "its searches reversed")


def monotone(trial: Trial) -> str:
    """Better never pays less, for what the contract calls better."""
    if not trial.contract.monotone:
        return "-"
    tried = 0
    for name, direction in trial.contract.monotone.items():
        for probe in trial.probes:
            for path, before, after in trial.compare(probe, _raised(name, probe.task)):
                tried += 1
                first, second = (before, after) if direction == "down" else (after, before)
                what = "an accepted answer" if name == "answer" else f"one more of {name}"
                moved = "raised" if direction == "down" else "lowered"
                low, high = total(first), total(second)
                if low is not None and high is not None and high > low + TOLERANCE:
                    note = f"{what} {moved} it from {total(before):.4g} to {total(after):.4g}"
                    raise Refuted("monotone", note, shown(path, probe.task))
    return ", ".join(f"{k} {v}" for k, v in trial.contract.monotone.items()) if tried else "no probe has what it names"


def _invariant(trial: Trial, check: str, variant: Variant, how: str) -> str:
    if check not in trial.contract.invariant:
        return "-"
    tried = 0
    for probe in trial.probes:
        for path, before, after in trial.compare(probe, variant):
            tried += 1
            trial.same(check, f"with {how}", path, probe.task, before, after)
    return "" if tried else "no probe can be rewritten so"


def _raised(name: str, task: Task) -> Variant:
    if name != "answer":
        return raised_signal(name)
    wrong = wrong_answer(task)

    def better(path: Written) -> Written | None:
        if path.answer != wrong or not task.answers:
            return None
        parts = tuple((a, t.replace(wrong, task.answers[0]) if a == "policy" else t) for a, t in path.parts)
        return replace(path, parts=parts, answer=task.answers[0])

    return better


def _has_word(answer: str | None, gold: str) -> bool:
    return bool(set((answer or "").lower().split()) & set(gold.lower().split()))


CHECKS: Mapping[str, Callable[[Trial], str]] = {
    check.__name__: check
    for check in (
        finite,
        deadline,
        bounds,
        deterministic,
        timeout,
        observations,
        length,
        repetition,
        forgery,
        hindsight,
        group_order,
        whitespace,
        answer_order,
        turn_order,
        monotone,
    )
}
"""In this order: where values are missing there is nothing to compare, and a hang ends it all."""
