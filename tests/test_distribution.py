"""The wheel and the sdist: built, installed as the image does it, and run outside of the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.dockerfile import commands
from tests.runs import environment, losses, tiny_run

ROOT = Path(__file__).resolve().parent.parent
UV = Path(sys.executable).with_name("uv")
NO_NETWORK = (
    "Failed to fetch",
    "dns error",
    "error sending request",
    "network was disabled",
    "connectivity is disabled",
)
EXPERIMENT = """\
# @package _global_
# SimMIM of a small model on our tiles.
defaults:
  - simmim_tiny
  - _self_
run:
  name: tiles
data:
  expected_samples: 1000
optim:
  global_batch: 64
"""


def uv(arguments: list[str], cwd: Path = ROOT) -> None:
    """Run uv out of its cache, and with the network where that is not enough.

    Skips the test where neither is there.
    """
    for more in (["--offline"], []):
        done = subprocess.run([UV, *arguments, *more], cwd=cwd, capture_output=True, text=True, env=environment())
        if done.returncode == 0:
            return
    if any(text in done.stderr for text in NO_NETWORK):
        pytest.skip(f"no network, and uv's cache has not all that it takes: {done.stderr.strip().splitlines()[-1]}")
    raise AssertionError(f"uv {' '.join(arguments)}\n{done.stderr}")


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory on the file system of uv's cache, from which packages are linked and not copied."""
    if not UV.exists():
        pytest.skip("uv is not installed (pip install -e '.[dev]' brings it)")
    cache = Path(subprocess.run([UV, "cache", "dir"], capture_output=True, text=True, check=True).stdout.strip())
    cache.mkdir(parents=True, exist_ok=True)
    same = os.stat(tempfile.gettempdir()).st_dev == cache.stat().st_dev
    directory = Path(tempfile.mkdtemp(prefix="swinv2-", dir=None if same else cache.parent))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def built(place: Path) -> tuple[Path, Path]:
    """The wheel and the sdist."""
    uv(["build", "--python", sys.executable, "--wheel", "--sdist", "--out-dir", str(place / "built")])
    return next((place / "built").glob("*.whl")), next((place / "built").glob("*.tar.gz"))


@pytest.fixture(scope="module")
def installed(place: Path) -> Path:
    """An environment that the commands of the Dockerfile have made, with their paths moved here; its bin directory."""
    steps = [words[1:] for words in commands() if words[0] == "uv"]
    assert [step[:2] for step in steps] == [
        ["build", "--wheel"], ["venv", "--python"], ["pip", "install"], ["pip", "install"],
    ]  # fmt: skip
    moved = {"/opt/venv": str(place / "venv"), "/dist": str(place / "dist"), "/src": str(ROOT)}
    for step in steps:
        words = [sys.executable if word == "/usr/bin/python3.12" else word for word in step]
        for old, new in moved.items():
            words = [word.replace(old, new, 1) if word.startswith(old) else word for word in words]
        # uv takes a pattern for a name of a file; the shell of the image has spelled it out.
        words = [str(next((place / "dist").glob("*.whl"))) if word.endswith("*.whl") else word for word in words]
        uv([word for word in words if word not in ("--no-cache", "--compile-bytecode")])
    return place / "venv" / "bin"


def files(directory: str) -> set[str]:
    """Return the content of a directory of the checkout, without files that programs leave there."""
    left = ("__pycache__", ".pytest_cache")
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / directory).rglob("*")
        if path.is_file() and not any(part in left for part in path.parts)
    }


@pytest.mark.slow
def test_the_wheel_has_the_package_and_every_config(built: tuple[Path, Path]) -> None:
    names = set(zipfile.ZipFile(built[0]).namelist())
    assert {name for name in files("swinv2_train") if name.endswith((".py", ".c"))} <= names
    assert {f"swinv2_train/{name}" for name in files("conf")} <= names
    assert not [name for name in names if name.startswith(("tests/", "conf/"))]


def test_the_sdist_has_what_its_tests_need(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        modes = {member.name.partition("/")[2]: member.mode for member in archive.getmembers()}
    wanted = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", ".dockerignore"}
    for directory in ("swinv2_train", "conf", "launch", "docker", "scripts", "tests", ".ci"):
        wanted |= files(directory)
    assert sorted(wanted - names) == []
    assert modes["launch/torchrun.sh"] & 0o111
    assert modes["scripts/test.sh"] & 0o111


def run(installed: Path, arguments: list[str], cwd: Path) -> str:
    """The output of the installed command in a directory of its own; the checkout is out of sight."""
    kept = environment(PATH=f"{installed}:{os.environ['PATH']}")
    kept = {key: value for key, value in kept.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    command = [str(installed / "swinv2-train"), *arguments]
    done = subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.distributed
def test_the_installed_command_trains_in_an_empty_directory(installed: Path, shards: Path, tmp_path: Path) -> None:
    assert not (installed.parent / "lib").is_relative_to(ROOT)
    assert not list(installed.parent.glob("lib/*/site-packages/*swinv2*.pth"))
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert all((installed / name).exists() for name in scripts)
    empty = tmp_path / "empty"
    empty.mkdir()
    short = ["optim.steps=2", "optim.warmup_steps=1", "data.num_workers=0", "data.eval_shards=null"]
    run(installed, tiny_run(shards, Path("run"), *short), empty)
    assert len(losses(empty / "run")) == 2
    assert [path.name for path in empty.iterdir()] == ["run"]


@pytest.mark.slow
def test_a_user_experiment_is_listed_next_to_the_installed_ones(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "tiles.yaml").write_text(EXPERIMENT)
    output = run(
        installed, ["--config-dir", "mine", "+experiment=tiles", "launch.device=cpu", "launch.dry_run=true"], tmp_path
    )
    assert "tiles in outputs/tiles" in output
    assert "global batch   64" in output
