"""What is shipped: one import name, every recipe, and the same modules from a checkout and from a wheel."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LINKED = ("rewards", "envs", "recipes", "launch")
PARTS = ("setup.py", "pyproject.toml", "rlkit", *LINKED)
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
UNPINNED_EXTRAS = ("vllm", "wandb")
"""Extras that launch/setup does not install."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of what a wheel is made of, links kept, so that building leaves nothing in the real checkout."""
    copy = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns("__pycache__", ".*", "*.pyc")
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, copy / part, symlinks=True, ignore=ignore)
        else:
            shutil.copy(source, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> zipfile.ZipFile:
    """The wheel, built without a network."""
    pytest.importorskip("setuptools", minversion="80", reason="building a wheel needs setuptools>=80")
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-c", BUILD, str(target)]
    built = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (file,) = target.glob("*.whl")
    return zipfile.ZipFile(file)


@pytest.mark.parametrize("name", LINKED)
def test_each_linked_folder_imports_below_rlkit_from_the_checkout(name):
    module = importlib.import_module(f"rlkit.{name}")
    assert Path(str(module.__file__)).resolve() == ROOT / name / "__init__.py"


def test_the_wheel_has_exactly_one_import_name(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"rlkit"}


def test_the_wheel_holds_every_file_of_the_packages_but_the_shell_commands(wheel, checkout):
    package = checkout / "rlkit"
    folders = [package, *(package / name for name in LINKED)]  # rglob does not enter links by itself
    files = {file for folder in folders for file in folder.rglob("*") if file.is_file()}
    shell = {f"rlkit/launch/{name}" for name in ("local", "test", "setup", "setup-vllm", "submit")}
    expected = {str(file.relative_to(checkout)) for file in files} - shell
    forgotten = expected - set(wheel.namelist())
    assert forgotten == set(), "give their pattern to package_data in setup.py"


def test_the_wheel_runs_without_the_checkout(wheel, tmp_path):
    wheel.extractall(tmp_path)
    imports = ", ".join(f"rlkit.{name}" for name in LINKED)
    code = f"import sys; sys.path.insert(0, sys.argv[1]); import {imports}; print(rlkit.launch.__file__)"
    command = [sys.executable, "-c", code, str(tmp_path)]
    output = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert Path(output.strip()) == tmp_path / "rlkit" / "launch" / "__init__.py"


def test_a_checkout_without_links_is_refused_with_a_reason(checkout, tmp_path):
    pytest.importorskip("setuptools")
    shutil.copy(checkout / "setup.py", tmp_path)
    (tmp_path / "rlkit").mkdir()
    command = [sys.executable, "setup.py", "--version"]
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "rlkit/rewards must link to ../rewards: clone with git" in refused.stderr


def test_every_package_that_is_installed_has_a_pin_that_setup_py_allows(wheel):
    """Whatever launch/setup asks for is pinned, so two installs a year apart are the same."""
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    requirements = map(Requirement, message_from_bytes(wheel.read(metadata)).get_all("Requires-Dist", []))
    pins = pinned()
    for requirement in requirements:
        marker, name = requirement.marker, canonicalize_name(requirement.name)
        if marker and any(marker.evaluate({"extra": extra}) for extra in UNPINNED_EXTRAS):
            continue
        assert name in pins, f"constraints.txt does not pin {name}"
        assert requirement.specifier.contains(pins[name]), f"{requirement} does not allow {pins[name]}"


def test_torch_is_pinned_without_a_build_so_that_cpu_and_cuda_wheels_both_fit():
    assert re.fullmatch(r"\d+\.\d+\.\d+", pinned()["torch"])


def pinned() -> dict[str, str]:
    """Package -> version, from constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}
