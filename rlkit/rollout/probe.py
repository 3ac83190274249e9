"""What a rollout worker shows of itself, so that others can tell whether it runs the policy that they train."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rlkit.errors import EnvError
from rlkit.policy.base import Completion, Engine, Grower, SampleRequest
from rlkit.records import Message
from rlkit.render import Renderer

__all__ = ["Question", "Shown", "renderer_prints", "show"]

_TALK = (Message(role="user", content="One\n\ntwo  three?"), Message(role="assistant", content=" Four.\n"))
_REPLY = (Message(role="user", content="\nFive"),)
_TEXT = "Hello,  world!\n\tÄpfel 北京 1234567 <think>\r\n</think> 😀"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One worker."""

    prints: Mapping[str, str] = field(default_factory=dict)
    """Subject -> digest: `tokenizer`, `chat template`. Empty for a worker that did not answer."""
    probe: Completion | None = None
    """What its engine makes of the request; None: not asked."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """Tensor -> digest of what its engine runs; empty: not asked, or the engine cannot say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a worker is asked to show besides its prints."""

    request: SampleRequest | None = None
    """To be answered by its engine; ignored by engines that grow whole trees."""
    weights: bool = False
    """Whether to digest its tensors, about a second per GB."""


async def show(engine: Engine, renderer: Renderer, question: Question) -> Shown:
    """The worker's answer."""
    probe, digests = None, getattr(engine, "digests", None)
    if question.request is not None and not isinstance(engine, Grower):
        probe = await engine.sample(question.request)
        engine.release(question.request.task_id)
    weights = digests() if question.weights and digests is not None else {}
    return Shown(prints=renderer_prints(renderer), probe=probe, weights=weights)


def renderer_prints(renderer: Renderer) -> dict[str, str]:
    """What decides tokens besides the weights. One space or newline more in a template is another print."""
    parts: list[Sequence[int]] = []
    for messages in (_TALK[:1], (*_TALK, *_REPLY)):
        try:
            parts.append(renderer.prompt(messages)[0].tolist())
        except EnvError as error:  # a template may refuse a role; both sides refuse it alike
            parts.append(list(str(error).encode()))
    for after_eos in (False, True):
        try:
            parts.append(renderer.turn_ids(_REPLY, after_eos)[0].tolist())
        except EnvError as error:
            parts.append(list(str(error).encode()))
    ids = renderer.text_ids(_TEXT).tolist()
    return {
        "tokenizer": _digest([ids, [ord(char) for char in renderer.decode(ids)], [renderer.end_id or -1]]),
        "chat template": _digest(parts),
    }


def _digest(parts: Sequence[Sequence[int]]) -> str:
    text = "|".join(",".join(map(str, part)) for part in parts)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
