"""Judges: language models behind an OpenAI-compatible endpoint that grade trajectories.

`answer.py` and `path.py` are the judges at hand; `client.py` asks, `prompt.py` is what is asked, `verdict.py` reads
what came back, `cache.py` remembers it.
"""

from rlkit.judging.client import Endpoint, JudgeClient, Verdict, shared
from rlkit.judging.prompt import Judge, Question

__all__ = ["Endpoint", "Judge", "JudgeClient", "Question", "Verdict", "shared"]
