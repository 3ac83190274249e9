"""Packaging of rlkit: `rewards/`, `envs/`, `recipes/` and `launch/` ship inside it, through links.

Imports are always `rlkit.rewards`, `rlkit.envs`, ...: one name in site-packages, none that can collide.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

for name in ("rewards", "envs", "recipes", "launch"):
    if not Path("rlkit", name).is_dir():
        raise SystemExit(f"rlkit/{name} must link to ../{name}: clone with git, or unpack with links kept")

version = re.search(r'^__version__ = "(.+)"', Path("rlkit/__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
if version is None:
    raise SystemExit('rlkit/__init__.py must say __version__ = "..."')

setup(
    name="rlkit-tree",  # plain "rlkit" on PyPI is another project
    version=version[1],
    description="Reinforcement learning of language models on prefix trees, from sampling to gradient",
    license="Apache-2.0",
    author="rlkit authors",
    python_requires=">=3.11",
    packages=find_packages(include=["rlkit", "rlkit.*"]),  # follows the links; each folder has an __init__.py
    package_data={
        "rlkit": ["py.typed", "**/assets/*"],
        "rlkit.recipes": ["**/*.yaml"],
        "rlkit.launch": ["templates/*"],
    },
    install_requires=["numpy>=2.0", "omegaconf>=2.4", "packaging>=24", "rich>=13"],
    extras_require={
        "train": [
            "torch>=2.13",
            "transformers>=5.23",
            "accelerate>=1.15",
            "safetensors>=0.8",
            "xxhash>=4.1",  # fingerprints of weights
            "ml_dtypes>=0.5",
            "gguf>=0.19",  # reads the small model of the quickstart
            "bm25s>=0.3",
            "einops>=0.8",
            "peft>=0.21",  # low-rank adapters, model.lora
        ],
        "retrieval": ["faiss-cpu>=1.15", "networkx>=3.6", "scikit-learn>=1.9"],  # the retriever `hybrid`
        "cluster": ["ray[default]==2.60.*"],  # [default] brings `ray job submit` and the dashboard
        "sweep": ["ray[tune]==2.60.*", "optuna>=5"],
        "deepspeed": ["deepspeed>=0.19"],
        "vllm": ["vllm>=0.32"],  # in an environment of its own: it needs an older transformers than [train]
        "tensorboard": ["tensorboard>=2.20"],
        "wandb": ["wandb>=0.20"],
        "dev": [
            "pytest>=9",
            "pytest-xdist>=3.8",
            "hypothesis>=6.170",
            "scipy>=1.17",
            "ruff>=0.17",
            "mypy>=2.4",
            "setuptools>=80",
        ],
    },
    entry_points={"console_scripts": ["rlkit = rlkit.launch.cli:main"]},
)
