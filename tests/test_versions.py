"""The declared ranges of versions, and the script that runs the suite at their edges."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "versions.sh"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
GROUPS = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
REQUIREMENTS = [Requirement(line) for group in GROUPS for line in group if not line.startswith("swinv2-train")]


def test_every_dependency_has_a_lower_bound_and_a_tested_version_inside_its_range() -> None:
    tested = dict(
        line.lower().split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    for requirement in REQUIREMENTS:
        assert any(part.operator == ">=" for part in requirement.specifier), requirement
        assert Version(tested[requirement.name.lower()]) in requirement.specifier, requirement


def refusal(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        ["/bin/bash", "scripts/versions.sh", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 2
    assert done.stdout == ""
    return done.stderr


@pytest.mark.parametrize("arguments", [[], ["highest"]])
def test_the_script_names_its_modes(arguments: list[str]) -> None:
    assert refusal(*arguments) == "scripts/versions.sh: use one of lowest, torch-2.11\n"


def test_a_missing_python_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "uv").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "uv").chmod(0o755)
    for name in ("python3.12", "dirname"):
        (tmp_path / name).write_text("#!/bin/sh\necho scripts\n" if name == "dirname" else "#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    said = refusal(
        "torch-2.11", PYTHON="", PATH=str(tmp_path), PYENV_ROOT=str(tmp_path), SWINV2_VERSIONS_VENV=str(tmp_path / "v")
    )
    assert "Python 3.12 is not installed, and uv cannot download it; set PYTHON=" in said


def test_the_selected_tests_exist() -> None:
    selected = re.findall(r"tests/[\w/]+(?:\.py)?", SCRIPT.read_text())
    assert len(selected) > 5
    assert [path for path in selected if not (ROOT / path).exists()] == []
