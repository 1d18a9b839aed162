"""The files in launch/ are valid for the tools that read them, and match the page next to them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from swinv2_train.exit_codes import STOPPED, WRONG_USE
from swinv2_train.launch.environment import read_env_file
from swinv2_train.launch.hosts import Host, read_hostfile
from tests.documents import blocks, run_block
from tests.runs import make_shard

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SHELL = [*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch", *(ROOT / "scripts").glob("*.sh"), ROOT / ".ci" / "run"]


def tool(name: str) -> str:
    """A program of a development package."""
    path = Path(sys.executable).with_name(name)
    assert path.exists(), f"pip install -e '.[dev]' brings {name}"
    return str(path)


def test_shell_files_pass_shellcheck() -> None:
    done = subprocess.run([tool("shellcheck"), "-x", *map(str, SHELL)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_manifests_hold_to_the_schema() -> None:
    manifest = LAUNCH / "kubernetes.yaml"
    for version in ("1.31", "1.37"):
        command = [tool("kubernetes-validate"), "--strict", "--quiet", "-k", f"{version}.0", str(manifest)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_parts_of_the_manifest_fit_each_other() -> None:
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    assert spec["completions"] == spec["parallelism"] == int(variables["NNODES"])
    assert spec["completionMode"] == "Indexed"
    assert variables["MASTER"] == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    codes = {
        code: rule["action"]
        for rule in spec["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {}).get("values", [])
    }
    assert codes == {WRONG_USE: "FailJob", STOPPED: "Ignore", 76: "FailJob"}
    assert "exit 76" in (LAUNCH / "torchrun.sh").read_text()
    assert {rule["onExitCodes"]["containerName"] for rule in spec["podFailurePolicy"]["rules"][:3]} == {
        container["name"]
    }


def test_the_manifest_and_the_image_agree() -> None:
    _, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    pod, dockerfile = job["spec"]["template"]["spec"], (ROOT / "docker" / "Dockerfile").read_text()
    container = pod["containers"][0]
    copied = dict(re.findall(r"^COPY (launch) (\S+)$", dockerfile, re.MULTILINE))
    for path in [container["command"][0], container["args"][-1].partition("=")[2]]:
        assert path.startswith(copied["launch"] + "/")
        assert (LAUNCH / path.rpartition("/")[2]).is_file()
    assert f"USER {pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}\n" in dockerfile
    assert f"--tag {container['image']} " in dockerfile


def test_the_scripts_that_are_called_by_path_can_be() -> None:
    assert (LAUNCH / "torchrun.sh").stat().st_mode & 0o111


@pytest.mark.parametrize(
    "path", [path for path in LAUNCH.iterdir() if path.suffix != ".md"], ids=lambda path: path.name
)
def test_every_file_shows_at_its_top_how_it_is_used(path: Path) -> None:
    top = [line for line in path.read_text().splitlines()[:6] if line.startswith("#")]
    assert any(path.name in line for line in top if not line.startswith("#!"))


def test_every_variable_of_the_environment_is_explained() -> None:
    lines = (LAUNCH / "nccl.env").read_text().splitlines()
    shown = [index for index, line in enumerate(lines) if re.match(r"(# )?[A-Z_]+=", line)]
    assert len(shown) > 10
    for index in shown:
        above = lines[index - 1]
        assert above.startswith("# "), lines[index]
        assert not re.match(r"# ([A-Z_]+=|---)", above), lines[index]


def test_the_environment_is_read_as_it_stands_and_as_it_is_commented(tmp_path: Path) -> None:
    text = (LAUNCH / "nccl.env").read_text()
    assert set(read_env_file(LAUNCH / "nccl.env")) == set(re.findall(r"^([A-Z_]+)=", text, re.MULTILINE))
    every = tmp_path / "every.env"
    every.write_text(re.sub(r"^# (?=[A-Z_]+=)", "", text, flags=re.MULTILINE))
    read = read_env_file(every)
    assert set(read) == set(re.findall(r"^(?:# )?([A-Z_]+)=", text, re.MULTILINE))
    assert read["NCCL_SOCKET_IFNAME"] == "=eth0"


@pytest.mark.slow
def test_libraries_know_the_variables_that_are_set() -> None:
    """A name that nobody reads would be folklore."""
    import torch

    libraries = [*(Path(torch.__file__).parent / "lib").glob("libtorch_c*.so")]
    libraries += Path(torch.__file__).parent.parent.glob("nvidia/nccl/lib/libnccl.so*")
    if not any("nccl" in path.name for path in libraries):
        pytest.skip("this PyTorch brings no NCCL along")
    names = re.findall(r"^(?:# )?((?:NCCL|TORCH)_[A-Z_]+)=", (LAUNCH / "nccl.env").read_text(), re.MULTILINE)
    command = ["grep", "-aohF", "\n".join(names), *map(str, libraries)]
    found = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"}).stdout.split()
    assert set(names) <= set(found)


def test_deepspeed_and_the_command_read_the_hostfile_alike() -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    theirs = fetch_hostfile(str(LAUNCH / "hostfile"))
    assert read_hostfile(LAUNCH / "hostfile") == [Host(name, slots) for name, slots in theirs.items()]
    assert dict(theirs) == {"node001": 8, "node002": 8}


@pytest.mark.distributed
def test_every_block_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(LAUNCH, tmp_path / "launch")
    (tmp_path / "shards").mkdir()
    make_shard(tmp_path / "shards" / "train-0.tar", 40, 0)
    for block in blocks(LAUNCH / "README.md"):
        run_block(block, tmp_path, monkeypatch)
    output = capfd.readouterr().out
    assert "16 ranks" in output
    assert "node002: deepspeed --hostfile my-hosts" in output
    for line in (
        "1 host, 2 ranks",
        "clocks within",
        "1 shard opened by the main rank",
        "all-reduce of",
        "one process reads and decodes a micro-batch",
    ):
        assert line in output


def test_the_page_names_every_file_and_every_forwarded_prefix() -> None:
    from swinv2_train.launch import hosts

    page = (LAUNCH / "README.md").read_text()
    for path in LAUNCH.iterdir():
        assert path.name in page or path.name == "README.md"
    prefixes = re.match(r"\(([A-Z0-9|]+)\)", hosts._FORWARDED.pattern)
    assert prefixes
    assert [name for name in prefixes[1].split("|") if f"`{name}_`" not in page] == []
