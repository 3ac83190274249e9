"""rlkit: reinforcement learning on prefix trees, from sampling to gradient."""

__version__ = "0.1.0"
