"""Every argument of every command by position, as `--name value`, and as `name=value`; and checks before torch."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from swinv2_train.cli.arguments import Parser
from swinv2_train.cli.values import file_path
from tests.data.samples import write_folder, write_shards
from tests.evaluated import classifier, encoder
from tests.runs import environment

COMMANDS = ("evaluate", "predict", "export", "analyze", "data", "checkpoint")


def parsed(command: str, line: str) -> dict[str, Any]:
    """The values that a command line gives to a command, without those of the parser itself."""
    parser = importlib.import_module(f"swinv2_train.cli.{command}")._parser()
    found = vars(parser.parse_args(line.split()))
    return {key: value for key, value in found.items() if key not in ("run", "known")}


@pytest.mark.parametrize(
    ("command", "lines"),
    [
        ("evaluate", [
            "run shards", "checkpoint=run data=shards", "data=shards run", "run shards=shards", "--data shards run",
            "--checkpoint=run shards", "shards --checkpoint run",
        ]),
        ("evaluate", [
            "run a b --which best --max-samples 3 --ema", "run data=[a,b] which=best max_samples=3 ema=true",
            "which=best run a max-samples=3 b --ema=true", "--max_samples 3 --which=best run a b --ema",
        ]),
        ("evaluate", [
            "run a --probe b --probe.knn 3 model.window=8 --json", "run model.window=8 a probe=b probe.knn=3 json=true",
        ]),
        ("predict", [
            "run a.png b.png data.resolution=64 --top 2", "top=2 run data.resolution=64 a.png b.png",
            "images=[a.png,b.png] data.resolution=64 run --top=2",
            "a.png checkpoint=run top=2 data.resolution=64 b.png",
        ]),
        ("predict", ["run -- -a.png", "run images=-a.png", "checkpoint=run -- -a.png"]),
        ("export", [
            "run out --format timm --dtype bf16 --bits 16", "checkpoint=run out=out format=timm dtype=bf16 bits=16",
            "out=out format=timm run bits=16 --dtype bf16",
        ]),
        ("analyze", [
            "windows a V1=b.pth --data c --windows 4,8 --workers 0", "windows data=c windows=4,8 a workers=0 V1=b.pth",
            "windows models=[a,V1=b.pth] data=c windows=[4,8] workers=0",
        ]),
        ("analyze", ["signal a --seed 1 --out x", "signal seed=1 out=x a"]),
        ("data", ["pack a b --classes --max-size 2KiB", "pack out=b src=a classes=true max_size=2048",
                  "pack source=a b classes=true max-size=2kib"]),
        ("data", ["inspect a b --background 0.5,0.5,0.5", "inspect shards=[a,b] background=[0.5,0.5,0.5]"]),
        ("checkpoint", ["prune run --keep-last 2 --yes", "prune path=run keep_last=2 yes=true",
                        "prune keep_last=2 run --yes"]),
        ("checkpoint", ["weights run w.safetensors --ema", "weights out=w.safetensors checkpoint=run ema=true"]),
    ],
)  # fmt: skip
def test_every_spelling_means_the_same(command: str, lines: list[str]) -> None:
    first, *others = (parsed(command, line) for line in lines)
    assert [other == first for other in others] == [True] * len(others), (first, others)


def test_values_arrive() -> None:
    found = parsed("evaluate", "which=best run a max_samples=3 ema=true model.window=8 cache-gib=2")
    given = {"checkpoint": "run", "data": ["a"], "which": "best", "max_samples": 3, "ema": True, "cache_gib": 2.0}
    assert {key: found[key] for key in given} == given
    assert found["changes"] == ["model.window=8"]
    assert not parsed("evaluate", "run a ema=false")["ema"]


def test_an_existing_path_is_read_as_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("top=2", "lr=1"):
        Path(name).mkdir()
    Path("lr=1/a.png").touch()
    found = parsed("predict", "lr=1 top=2 lr=1/a.png lr=1/*.png top=3")
    assert (found["checkpoint"], found["images"]) == ("lr=1", ["top=2", "lr=1/a.png", "lr=1/*.png"])
    assert found["top"] == 3


def test_config_keys_of_a_run_are_its_own() -> None:
    from swinv2_train.cli import pipeline, train

    line = ["+experiment=simmim_demo", "data.shards=a", "config_dir=here", "model=b", "-m", "junk"]
    found = train.parse(line)
    assert (found.overrides, found.config_dir, found.multirun) == ([*line[:2], "model=b", "junk"], Path("here"), True)
    chain = pipeline.parse(["status", "outputs/demo", "json=true", "redo=a", "redo=b"])
    assert (chain.items, chain.json, chain.redo) == (["status", "outputs/demo"], True, ["a", "b"])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_both_ways_and_the_version(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = importlib.import_module(f"swinv2_train.cli.{command}")._parser()
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"{parser.prog} 0.")
    inner = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
    for each in inner[0].values() if inner else [parser]:
        assert isinstance(each, Parser)
        with pytest.raises(SystemExit):
            each.parse_args(["--help"])
        shown = capsys.readouterr().out
        assert f"by name, in any order: {each.prog} " in shown
        assert "options either way:     --" in shown or not [a for a in each._actions if a.option_strings][1:]
        for name, action in each.named().items():
            assert f"{action.option_strings[0]}" in shown if action.option_strings else f"{action.dest}=" in shown, name


EARLY = """
import contextlib, importlib, io, json, shutil, sys
answers = []
for module, line, free in json.loads(sys.argv[1]):
    main = importlib.import_module(f"swinv2_train.cli.{module}").main
    honest = shutil.disk_usage
    if free is not None:
        shutil.disk_usage = lambda path: honest(path)._replace(free=free)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(line)
        except SystemExit as end:
            code = end.code
    shutil.disk_usage = honest
    answers.append([code, err.getvalue(), out.getvalue(), "torch" in sys.modules])
print(json.dumps(answers))
"""


def test_paths_values_and_room_are_checked_before_torch(tmp_path: Path) -> None:
    weights = classifier(tmp_path / "model.safetensors", 3, ["cat", "dog", "elk"])
    simmim = encoder(tmp_path / "simmim.safetensors")
    (shard,) = write_shards(tmp_path / "shards", [2])
    images = write_folder(tmp_path / "images", 3)
    (tmp_path / "file").write_text("0\n7\n")
    none, file, out = tmp_path / "none", tmp_path / "file", tmp_path / "out"
    eval_line, predict_line = ["device=cpu", str(weights), str(shard)], [str(weights), str(images), "device=cpu"]
    export_line, windows = [str(weights), str(out), "--format", "swinv2-train"], ["windows", "windows=4", "device=cpu"]
    cases: list[tuple[str, list[Any], str, int | None]] = [
        ("data", ["pack", none, out], f"{none} does not exist", None),
        ("data", ["pack", images, file], f"OUT={file}: cannot be written to", None),
        ("data", ["pack", images, out, "class_names=none.txt"], "the class names none.txt cannot be read", None),
        ("data", ["pack", images, out], "must be written, and", 1000),
        ("data", ["inspect", none], f"{none} does not exist", None),
        ("data", ["inspect", shard, "sheet=a.docx"], "a.docx: the name must end in", None),
        ("data", ["bench", none], f"{none} does not exist", None),
        ("data", ["bench", shard, "scaled=true", "entire=true"], "--scaled has no effect", None),
        ("predict", [none, images], f"{none} does not exist", None),
        ("predict", [weights, none], f"{none} does not exist", None),
        ("predict", [simmim, images], "has no classes to name", None),
        ("predict", [*predict_line, "labels=" + str(file)], "has 2 lines, the model 3 classes", None),
        ("predict", [*predict_line, "model.window=x"], "model.window=x", None),
        ("predict", [*predict_line, "--out", file], "cannot be written to", None),
        ("export", [none, out, "--format", "timm"], f"{none} does not exist", None),
        ("export", [*export_line, "which=best"], "there is no best one", None),
        ("export", [weights, images, "format=timm"], "already exists", None),
        ("export", [*export_line, "--images", none], f"{none} does not exist", None),
        ("export", [*export_line, "data.crop_pct=0"], "data.crop_pct=0.0: is a share", None),
        ("export", export_line, "must be written, and", 1000),
        ("evaluate", [*eval_line[:2], none], f"{none} does not exist", None),
        ("evaluate", [*eval_line, "label_map=" + str(file)], "class 7 of a model that has 0 to 2", None),
        ("evaluate", [*eval_line, f"real_labels={none}"], "cannot be read", None),
        ("evaluate", [*eval_line, f"probe={none}"], f"{none} does not exist", None),
        ("evaluate", [*eval_line, "precision=fp16"], "precision=fp16: needs a GPU", None),
        ("evaluate", [*eval_line, f"out={file}"], "cannot be written to", None),
        ("evaluate", ["device=cpu", simmim, shard, "label_map=names"], "requires a classifier", None),
        ("analyze", [*windows, weights, f"data={none}"], f"{none} does not exist", None),
        ("analyze", [*windows, none, f"data={shard}"], f"{none} does not exist", None),
        ("analyze", ["signal", weights, "device=cpu", "data.crop_mode=x"], "data.crop_mode=x", None),
        ("checkpoint", ["ls", none], f"{none} does not exist", None),
        ("sweep", ["status", none], "none", None),
    ]  # fmt: skip
    dry = ["+experiment=simmim_demo", f"data.shards={shard}", "data.eval_shards=null", "launch.dry_run=true"]
    table = [[module, [str(word) for word in line], free] for module, line, _, free in cases]
    table.append(["train", [*dry, f"run.dir={out}", "launch.device=cpu"], None])
    command = [sys.executable, "-c", EARLY, json.dumps(table)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    *answers, train = json.loads(done.stdout)
    wrong = [
        (module, line, code, error)
        for (module, line, sentence, free), (code, error, shown, torch) in zip(cases, answers, strict=True)
        if sentence not in error or code != (1 if free else 2) or error.count("\n") != 1 or shown or torch
    ]
    assert not wrong, "\n".join(map(str, wrong))
    assert train[0] == 0, train
    assert "global batch" in train[2]
    assert not train[3], "the dry run has imported torch"
    assert not out.exists()


def test_every_path_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells do not expand ~ after `name=`."""
    monkeypatch.setenv("HOME", "/home/me")
    parsers: list[Parser] = []
    for command in (*COMMANDS, "features"):
        parser = importlib.import_module(f"swinv2_train.cli.{command}")._parser()
        commands = [list(action.choices.values()) for action in parser._actions if isinstance(action.choices, dict)]
        parsers += commands[0] if commands else [parser]
    types = {action.type for parser in parsers for action in parser._actions}
    assert file_path in types
    assert Path not in types
    assert parsed("evaluate", "run shards out=~/zz")["out"] == Path("/home/me/zz")
