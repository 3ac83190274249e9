"""The doctor names what is missing, tells required from optional, and says the command that helps."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib import metadata

import pytest

from rlkit.launch import doctor
from rlkit.launch.doctor import Finding, diagnose, main

REQUIREMENTS = [
    "omegaconf>=2.4",
    'torch>=2.13; extra == "train"',
    'ray[default]==2.60.*; extra == "cluster"',
    'wandb>=0.20; extra == "wandb"',
    'pytest>=9; extra == "dev"',
]


@pytest.fixture
def install(monkeypatch, tmp_path) -> Callable[..., None]:
    """Pretends that exactly these distributions are installed, on a machine with the small model and room."""

    def install(**versions: str) -> None:
        def version(name: str) -> str:
            if name not in versions:
                raise metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(metadata, "version", version)
        monkeypatch.setattr(metadata, "requires", lambda _: REQUIREMENTS)

    folder = tmp_path / "smollm2-135m-instruct"
    folder.mkdir()
    (folder / "SHA256SUMS").touch()
    monkeypatch.setenv("RLKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(doctor, "_torch", lambda: iter(()))
    monkeypatch.setattr(doctor, "_resources", lambda: iter(()))
    return install


def found(name: str) -> Finding:
    """The finding of that name."""
    return next(finding for finding in diagnose() if finding.name == name)


def test_a_complete_machine_is_fine_without_optional_packages(install, capsys):
    install(omegaconf="2.4.0", torch="2.13.0+cpu", ray="2.60.1")
    assert main() == 0
    assert not found("wandb").ok
    assert "everything required is here" in capsys.readouterr().out


def test_a_missing_required_package_fails_and_is_named(install, capsys):
    install(omegaconf="2.4.0", ray="2.60.0")
    assert main() == 1
    assert "missing: torch" in capsys.readouterr().out


@pytest.mark.parametrize("versions", [{"omegaconf": "2.3.0"}, {"ray": "2.61.0"}, {"torch": "2.12.1+cu130"}])
def test_an_unsuitable_version_counts_as_missing(install, versions):
    install(**{"omegaconf": "2.4.0", "torch": "2.13.0", "ray": "2.60.0"} | versions)
    (name,) = versions
    assert (found(name).ok, found(name).found) == (False, versions[name])
    assert main() == 1


def test_the_command_that_helps_is_printed_in_one_piece_even_on_a_narrow_terminal(install, capsys):
    install(omegaconf="2.4.0", torch="2.13.0", ray="2.60.0")
    main()
    assert "absent wandb: .venv/bin/pip install -c constraints.txt -e '.[wandb]'\n" in capsys.readouterr().out


def test_tools_of_developers_are_not_looked_for(install):
    install(omegaconf="2.4.0", torch="2.13.0", ray="2.60.0")
    assert "pytest" not in {finding.name for finding in diagnose()}


def test_an_unprepared_small_model_is_answered_with_the_command(install, monkeypatch, tmp_path):
    install(omegaconf="2.4.0", torch="2.13.0", ray="2.60.0")
    monkeypatch.setenv("RLKIT_CACHE", str(tmp_path / "elsewhere"))
    assert (found("smollm2-135m").ok, found("smollm2-135m").fix) == (False, "launch/setup")
    assert main() == 1


def test_without_metadata_of_rlkit_the_doctor_says_how_to_install_it(install, monkeypatch):
    def absent(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    install()
    monkeypatch.setattr(metadata, "requires", absent)
    assert not found("rlkit").ok
    assert found("rlkit").fix.endswith("launch/setup")


def test_a_torch_that_does_not_start_is_a_finding_and_no_crash(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it raises ImportError
    (finding,) = doctor._torch()
    assert (finding.required, finding.ok) == (True, False)


def test_sizes_are_compared_in_bytes_and_shown_in_gibibytes():
    finding = doctor._size("disk", 3 << 29, 2 << 30, fix="rm -r runs")
    assert (finding.ok, finding.found, finding.needed) == (False, "1.5 GiB", ">=2.0 GiB")


def test_a_container_limit_counts_as_the_memory_of_the_machine(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(doctor, "MEMORY_LIMIT", limit)
    machine = doctor._memory_bytes()
    limit.write_text("max\n")
    assert doctor._memory_bytes() == machine
    limit.write_text("1024\n")
    assert doctor._memory_bytes() == 1024


def test_versions_are_read_without_importing_the_packages():
    code = (
        "import sys; from rlkit.launch import doctor; list(doctor._packages()); "
        "print(*({'torch', 'transformers', 'ray', 'deepspeed'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.split() == []


def test_every_real_finding_comes_with_a_fix():
    assert all(finding.name and finding.found and finding.needed and finding.fix for finding in diagnose())
