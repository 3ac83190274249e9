"""rlkit: reinforcement learning on prefix trees, from sampling to gradient.

The names that a reward, an environment, a retriever or a task source is written with. The rest is imported
from its module: `from rlkit.config import load`.
"""

from rlkit.data.base import TaskSource
from rlkit.env import Env, EnvStep
from rlkit.errors import EnvError, RecipeError, RewardError, RlkitError
from rlkit.records import Message, Task, Trajectory, Tree
from rlkit.retriever import Passage, Retrieval, Retriever
from rlkit.reward import Score, per_group

__version__ = "0.1.0"

__all__ = [
    "Env",
    "EnvError",
    "EnvStep",
    "Message",
    "Passage",
    "RecipeError",
    "Retrieval",
    "Retriever",
    "RewardError",
    "RlkitError",
    "Score",
    "Task",
    "TaskSource",
    "Trajectory",
    "Tree",
    "per_group",
]
