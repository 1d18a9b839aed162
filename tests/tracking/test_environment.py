"""environment.json: one entry per start, and a commit only where it is the commit of this source."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from swinv2_train.tracking.environment import _source_commit, append_environment, describe_environment
from swinv2_train.tracking.memory import memory_gib


def git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(directory), *identity, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The package directory of a committed checkout."""
    package = tmp_path / "checkout" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    git(tmp_path, "init", "-q", "checkout")
    git(package, "add", ".")
    git(package, "commit", "-q", "-m", "first")
    return package


def test_describes_command_versions_and_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["swinv2-train", "+experiment=simmim_tiny", "run.name=two words"])
    entry = json.loads(json.dumps(describe_environment()))
    assert entry["command"].endswith("swinv2-train +experiment=simmim_tiny 'run.name=two words'")
    assert entry["packages"]["torch"] == metadata.version("torch")
    assert entry["cpu_count"] >= 1
    assert entry["memory_gib"] > 0


def test_a_package_that_is_not_installed_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swinv2_train.tracking.environment.PACKAGES", ("no-such-distribution-at-all",))
    assert describe_environment()["packages"] == {"no-such-distribution-at-all": None}


def test_every_start_is_one_entry(tmp_path: Path) -> None:
    append_environment(tmp_path, 0)
    append_environment(tmp_path, 120)
    starts = json.loads((tmp_path / "environment.json").read_text())
    assert [entry["start_step"] for entry in starts] == [0, 120]
    assert [path.name for path in tmp_path.iterdir()] == ["environment.json"]


@pytest.mark.parametrize("broken", ['[{"start_step": 0', '{"start_step": 0}'])
def test_an_unreadable_file_is_put_aside_not_overwritten(tmp_path: Path, broken: str) -> None:
    (tmp_path / "environment.json").write_text(broken)
    append_environment(tmp_path, 7)
    assert [entry["start_step"] for entry in json.loads((tmp_path / "environment.json").read_text())] == [7]
    assert (tmp_path / "environment.json.unreadable").read_text() == broken


def test_commit_and_dirty_flag_of_a_checkout(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert _source_commit(checkout) == {"commit": commit, "dirty": False}
    (checkout.parent / "outputs.txt").write_text("not source")
    assert _source_commit(checkout) == {"commit": commit, "dirty": False}
    (checkout / "new.py").write_text("")
    assert _source_commit(checkout) == {"commit": commit, "dirty": True}


def test_an_install_inside_a_strangers_checkout_has_no_commit(checkout: Path) -> None:
    installed = checkout.parent / ".venv" / "site-packages" / "swinv2_train"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert _source_commit(installed) is None


def test_a_missing_git_is_not_an_error(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert _source_commit(checkout) is None


@pytest.mark.slow
def test_memory_without_a_gpu_is_the_peak_of_the_process() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from swinv2_train.tracking.memory import memory_gib\n"
        "before = memory_gib(); ballast = bytearray(b'x') * 2**28; print(memory_gib() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(0.25, abs=0.05)


def test_memory_with_a_gpu_is_the_peak_that_torch_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(is_available=lambda: True, max_memory_allocated=lambda: 3 * 2**29)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert memory_gib() == 1.5
