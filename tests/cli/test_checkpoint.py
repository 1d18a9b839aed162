"""The command `swinv2-checkpoint`: what it shows, checks and writes, and usage errors in one sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from swinv2_train.checkpoint import consolidate
from swinv2_train.checkpoint.layout import MANIFEST, read_manifest
from swinv2_train.exit_codes import FAILED, FINISHED, INTERRUPTED, WRONG_USE
from swinv2_train.launch.lock import RunLock
from tests.checkpoint.written import read, write
from tests.cli.checkpoints import flip_a_byte, run
from tests.cli.checkpoints import made as made
from tests.cli.checkpoints import refused as refused

COMMANDS = ("ls", "verify", "show", "prune", "reshape", "weights")
LOCKS = (".lock", ".start.lock")


WITHOUT_TORCH = (
    "import sys\n"
    "from swinv2_train.cli.checkpoint import main\n"
    "try: main(sys.argv[1:])\n"
    "except SystemExit as end: assert not end.code\n"
    "slow = {'torch', 'numpy', 'rich', 'hydra', 'safetensors'} & set(sys.modules)\n"
    "assert not slow, slow"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], [*COMMANDS, "examples:"]),
        (["ls", "--help"], ["--verify", "--json", "--best-metric", "swinv2-checkpoint ls outputs/"]),
        (["verify", "--help"], ["PATH"]),
        (["show", "--help"], ["--tensors"]),
        (["prune", "--help"], ["--keep-last", "--keep-every-steps", "--keep-best", "--yes"]),
        (["reshape", "--help"], ["--ranks", "OUT"]),
        (["weights", "--help"], ["--ema", "--dtype", "--no-verify"]),
        (["ls", "{run}"], ["complete"]),
        (["show", "{run}"], ["train.step"]),
        (["prune", "{run}", "--keep-last", "1"], ["to remove"]),
        (["prune", "{refused}", "--keep-last", "1"], ["kept for a replay", "to remove"]),
    ],
)
def test_help_and_a_look_import_nothing_slow(made: Path, refused: Path, arguments: list[str], words: list[str]) -> None:
    paths = {"run": made, "refused": refused}
    command = [sys.executable, "-c", WITHOUT_TORCH, *(argument.format(**paths) for argument in arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    wanted = [*words, "exit status: 0 all is well"] if "--help" in arguments else words
    assert all(word in result.stdout for word in wanted), result.stdout


def test_ls_lists_everything(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (made / "checkpoints" / ".saving-step-00000050-ab").mkdir()
    (made / "checkpoints" / ".saving-step-00000050-ab" / "x").write_bytes(b"0" * 2048)
    code, out, err = run(capsys, "ls", made)
    assert (code, err) == (FINISHED, "")
    lines = out.splitlines()
    assert lines[0].split() == ["step", "written", "size", "ranks", "ema", "metrics", "mark", "state"]
    assert [line.split()[0] for line in lines[1:5]] == ["40", "30", "20", "10"]
    assert lines[1].endswith("newest  complete")
    assert "eval/loss 0.2 " in lines[3]
    assert lines[3].endswith("best    complete")
    assert [line.split().count("yes") for line in lines[1:5]] == [1, 1, 1, 0]
    assert lines[5].startswith(".saving-step-00000050-ab: 2.0 KiB, being written, or left behind")
    code, out, _ = run(capsys, "ls", made / "checkpoints", "--verify")
    assert code == FINISHED
    assert out.count("verified") == 4
    assert out.splitlines()[3].endswith("best    verified")
    code, out, err = run(capsys, "ls", made, "--best-mode", "max")
    assert (code, out) == (WRONG_USE, "")
    assert "lower values of eval/loss are better" in err
    code, out, _ = run(capsys, "ls", made / "checkpoints" / "step-00000020")
    assert code == FINISHED
    assert len(out.splitlines()) == 2


def test_ls_is_the_state_of_the_newest(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    next((made / "checkpoints" / "step-00000020").glob("model/*")).unlink()
    code, out, _ = run(capsys, "ls", made)
    assert code == FINISHED
    assert "damaged: model/rank-0000" in out.splitlines()[3]
    flip_a_byte(made / "checkpoints" / "step-00000040" / "state.json")
    assert run(capsys, "ls", made)[0] == FINISHED  # the size is right
    code, out, _ = run(capsys, "ls", made, "--verify")
    assert code == FAILED
    assert "damaged: state.json has been changed (its hash differs)" in out.splitlines()[1]


def test_ls_as_json(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(made / "checkpoints", 50, metrics={"eval/loss": float("nan")})
    (made / "checkpoints" / "step-00000030" / MANIFEST).write_text("{")
    code, out, _ = run(capsys, "ls", made, "--json")
    assert code == FINISHED
    listed = json.loads(out)
    assert listed["leftovers"] == []
    rows = {row["step"]: row for row in listed["checkpoints"]}
    assert list(rows) == [50, 40, 30, 20, 10]
    assert rows[50]["metrics"] == {"eval/loss": None}
    assert rows[50]["newest"]
    assert rows[30]["state"] == "damaged"
    assert rows[30]["reason"].startswith("manifest.json is broken")
    assert rows[20] == {
        "step": 20,
        "path": str(made / "checkpoints" / "step-00000020"),
        "written": rows[20]["written"],
        "bytes": sum(path.stat().st_size for path in (made / "checkpoints" / "step-00000020").rglob("*.*")),
        "ranks": 4,
        "ema": True,
        "metrics": {"eval/loss": 0.2},
        "state": "complete",
        "reason": None,
        "newest": False,
        "best": True,
    }
    assert rows[20]["written"].endswith("+00:00")


def test_a_run_that_has_not_saved_has_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoints" / ".saving-step-00000010").mkdir(parents=True)
    code, out, _ = run(capsys, "ls", tmp_path)
    assert code == FAILED
    assert out.startswith(f"no checkpoint in {tmp_path}\n.saving-step-00000010: 0 B")


def test_verify_gives_a_line_each(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "verify", made)
    assert code == FINISHED
    assert [line.split(",")[0] for line in out.splitlines()] == [
        f"step-000000{step}: verified" for step in (40, 30, 20, 10)
    ]
    flip_a_byte(next((made / "checkpoints" / "step-00000010").glob("optimizer/*")))
    code, out, _ = run(capsys, "verify", made)
    assert code == FAILED
    assert out.splitlines()[3].startswith("step-00000010: damaged: optimizer/rank-0000")
    assert run(capsys, "verify", made / "checkpoints" / "step-00000020")[0] == FINISHED


def test_show_says_what_is_inside(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "show", made / "checkpoints" / "step-00000020", "--tensors")
    assert code == FINISHED
    facts = dict(line.split(maxsplit=1) for line in out.splitlines() if len(line.split()) > 1)
    assert facts["step"] == "20"
    assert facts["ranks"] == "4"
    assert facts["parameters"] == "52 in 3 tensors"
    assert facts["eval/loss"] == "0.2"
    assert facts["task.name"] == "simmim"
    assert facts["model.embed_dim"] == "5"
    assert facts["train.step"] == "20"
    assert facts["train.guard.losses"] == "[0.5, null]"
    assert facts["train.guard.norms"] == "[0, 1, 2, 3, 4, 5, 6, 7, ...] (128 values)"
    assert facts["optimizer.adam_steps"] == "9"
    assert facts["encoder.weight"].split() == ["7", "x", "5", "35"]
    assert facts["all"] == "52"
    for kind in ("model", "optimizer", "ema"):
        assert f"size of {kind}" in out
    newest = run(capsys, "show", made)[1]
    assert "step-00000040" in newest
    assert "encoder.weight" not in newest


def test_show_reports_a_damaged_checkpoint(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    next((made / "checkpoints" / "step-00000040").glob("model/*")).unlink()
    code, out, _ = run(capsys, "show", made)
    assert code == FAILED
    assert "damaged: model/rank-0000" in out
    assert "train.step" in out


def test_reshape_writes_the_same_for_fewer_ranks(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "reshape", made, tmp_path / "archive" / "small", "--ranks", 2)
    target = tmp_path / "archive" / "small" / "step-00000040"
    assert (code, err) == (FINISHED, "")
    assert out.startswith(f"{target}: written from ")
    assert read_manifest(target).world_size == 2
    assert read(target) == read(made / "checkpoints" / "step-00000040")


def test_weights_are_written(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out_file = tmp_path / "ema.safetensors"
    code, out, err = run(capsys, "weights", made, out_file, "--ema", "--dtype", "bf16")
    assert (code, err) == (FINISHED, "")
    assert out.startswith(f"{out_file}: ")
    with safe_open(out_file, framework="pt") as file:
        assert set(file.keys()) == {"encoder.weight", "encoder.bias", "decoder.weight"}
        assert file.get_slice("encoder.weight").get_dtype() == "BF16"
        assert file.metadata()["step"] == "40"
        assert file.metadata()["weights"] == "ema"


def _use(path: str) -> list[tuple[list[str], int, str]]:
    """Every command on one path."""
    return [
        (["ls", path], 0, ""),
        (["verify", path], 0, ""),
        (["show", path], 0, ""),
        (["prune", path, "--keep-last", "1"], 0, ""),
        (["reshape", path, "{tmp}/out", "--ranks", "2"], 0, ""),
        (["weights", path, "{tmp}/x.safetensors"], 0, ""),
    ]


STEP = "{run}/checkpoints/step-00000040"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], WRONG_USE, "the following arguments are required"),
        (["nonsense"], WRONG_USE, "nonsense is not a command of swinv2-"),
        *[(arguments, WRONG_USE, "{tmp}/none does not exist") for arguments, _, _ in _use("{tmp}/none")],
        *[(arguments, WRONG_USE, "{tmp} is neither a run directory") for arguments, _, _ in _use("{tmp}")],
        *[
            (arguments, WRONG_USE, "there is no checkpoint in {tmp}/empty/checkpoints")
            for arguments, _, _ in _use("{tmp}/empty")
            if arguments[0] not in ("ls", "prune")
        ],
        (["prune", "{run}"], WRONG_USE, "--keep-last (or keep_last=) is missing"),
        (["prune", "{run}", "--keep-last", "0"], WRONG_USE, "--keep-last 0: must be an integer of at least 1"),
        (["prune", "{run}", "--keep-last", "x"], WRONG_USE, "--keep-last x: must be an integer of at least 1"),
        (["prune", STEP, "--keep-last", "1"], WRONG_USE, "step-00000040 is one checkpoint; use a run directory"),
        (
            ["prune", "{run}", "--keep-last", "1", "--best-mode", "mean"],
            WRONG_USE,
            "mean: must be one of min, max",
        ),
        (["reshape", STEP, "{run}/checkpoints", "--ranks", "2"], WRONG_USE, "step-00000040 already exists"),
        (["reshape", STEP, "{tmp}/file/out", "--ranks", "2"], FAILED, "cannot be created (Not a directory)"),
        (["reshape", STEP, "{tmp}/out"], WRONG_USE, "--ranks (or ranks=) is missing"),
        (["weights", STEP, "{tmp}/file.safetensors"], WRONG_USE, "file.safetensors already exists"),
        (["weights", STEP, "{tmp}/x.bin"], WRONG_USE, "must end in .safetensors"),
        (
            ["weights", STEP, "{tmp}/x.safetensors", "--dtype", "int8"],
            WRONG_USE,
            "int8: must be one of fp32, bf16",
        ),
        (
            ["weights", "{run}/checkpoints/step-00000010", "{tmp}/x.safetensors", "--ema"],
            WRONG_USE,
            "step-00000010 holds no moving average",
        ),
    ],
)
def test_usage_errors_are_one_sentence(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    (tmp_path / "file.safetensors").write_text("")
    before = sorted(tmp_path.rglob("*"))
    status, out, err = run(capsys, *(argument.format(run=made, tmp=tmp_path) for argument in arguments))
    assert (status, out) == (code, "")
    assert message.format(run=made, tmp=tmp_path) in err
    assert err.startswith("swinv2-checkpoint")
    assert err.count("\n") == 1
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name not in LOCKS] == before


def _other_format(path: Path) -> None:
    values = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**values, "format_version": 1}))


def _other_model(path: Path) -> None:
    text = (path / MANIFEST).read_text()
    (path / MANIFEST).write_text(text.replace('"embed_dim": 5', '"embed_dim": 6'))


DAMAGE = {
    "flipped byte": (lambda path: flip_a_byte(next(path.glob("model/*"))), "has been changed (its hash differs)"),
    "cut off": (lambda path: next(path.glob("model/*")).write_bytes(b"1234"), "has 4 bytes instead of"),
    "no manifest": (lambda path: (path / MANIFEST).unlink(), "manifest.json is missing"),
    "broken manifest": (lambda path: (path / MANIFEST).write_text('{"step": 1'), "manifest.json is broken"),
    "changed manifest": (_other_model, "manifest.json has been changed (its hash differs)"),
    "other format": (_other_format, "format 1 is not the one this version reads"),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("command", ["ls", "verify", "reshape", "weights"])
def test_damage_is_one_sentence_and_status_1(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, command: str
) -> None:
    path = made / "checkpoints" / "step-00000040"
    damage, message = DAMAGE[kind]
    damage(path)
    more = {
        "ls": ["--verify"],
        "verify": [],
        "reshape": [tmp_path / "out", "--ranks", 2],
        "weights": [tmp_path / "x.safetensors"],
    }[command]
    status, out, err = run(capsys, command, path, *more)
    assert status == FAILED
    assert message in (out if command in ("ls", "verify") else err)
    if command in ("reshape", "weights"):
        assert out == ""
        assert err.startswith(f"swinv2-checkpoint: {path}: ")
        assert err.count("\n") == 1
    assert [left.name for left in tmp_path.iterdir()] == ["run"]


def test_show_of_a_broken_manifest_is_one_sentence(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = made / "checkpoints" / "step-00000040"
    (path / MANIFEST).unlink()
    code, out, err = run(capsys, "show", made)
    assert (code, out) == (FAILED, "")
    assert err == f"swinv2-checkpoint: {path}: manifest.json is missing (No such file or directory)\n"


def test_paths_without_a_name_work(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made / "checkpoints" / "step-00000020" / "model")
    code, out, _ = run(capsys, "ls", "..")
    assert (code, len(out.splitlines())) == (FINISHED, 2)
    monkeypatch.chdir(made / "checkpoints")
    lock = RunLock(made)
    assert run(capsys, "prune", ".", "--keep-last", 1, "--yes")[0] == WRONG_USE
    lock.release()


def test_an_interrupt_leaves_nothing_behind(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(consolidate.os, "fsync", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    code, _, err = run(capsys, "weights", made, tmp_path / "x.safetensors")
    assert (code, err) == (INTERRUPTED, "swinv2-checkpoint: interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert signal.getsignal(signal.SIGTERM) == before
