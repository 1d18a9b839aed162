"""Secrets are in no text that is shown or stored, and names in no page are markup."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from swinv2_train import redact as module
from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.cli.sheet import Entry, csv_text, html_sheet, jsonl_text, png_sheet
from swinv2_train.config.compose import compose, from_yaml, to_yaml
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.multirun import plan_multirun, run_multirun
from swinv2_train.data.errors import BrokenSample, DataError
from swinv2_train.engine.start import changed_since
from swinv2_train.errors import RunError
from swinv2_train.interop.model_card import _table
from swinv2_train.redact import hide, redact, redacted
from swinv2_train.sweep.job import make_job, new_record, write_job
from swinv2_train.tasks.prediction import Prediction
from swinv2_train.text import as_html, as_label, as_markdown, printable
from swinv2_train.tracking.charts import Series, line_chart
from swinv2_train.tracking.confusion import confusion_chart
from swinv2_train.tracking.console import RunConsole

SECRET = "hunter2SECRET"
URLS = [
    f"https://user:{SECRET}@example.org/d/train-{{000000..000011}}.tar",
    f"https://{SECRET}@example.org/a.tar",
    f"https://{SECRET.lower()}@example.org/a.tar",
    f"https://user:{SECRET}@x@example.org:8080/a.tar",
    f"https://user:{SECRET}/with?odd#signs@example.org/a.tar",
    f"s3://key:{SECRET}@bucket/a.tar",
    f"simplecache::https://user:{SECRET}@example.org/a.tar",
    f"https://b.s3.amazonaws.com/a.tar?X-Amz-Algorithm=A&X-Amz-Expires=60&X-Amz-Signature={SECRET}%2F",
    f"https://x.blob.core.windows.net/c/a.tar?sv=2022&sp=r&sig={SECRET}%3D&se=2030",
    f"https://example.org/a.tar?token={SECRET},{SECRET}",
    f"https://example.org/a.tar?{SECRET}",
    f"https://example.org/a.tar#access_token={SECRET}",
]
HARMLESS = [
    "s3://bucket/train-000000.tar", "https://example.org:8080/a@2x.tar", "abfs://container@account.dfs/a.tar",
    "https://example.org/a.tar?versionId=3&download=1", "data.shards=shards/train-*.tar", "a@b.c", "x?y=z",
]  # fmt: skip
NAMES = [
    "<script>alert(1)</script>", 'a"onmouseover="x', "a|b", "`code`", "two\nlines\r\n# title", "[x](javascript:1)",
    "*bold*", "back\\slash", "$\\frac{", "\udcff\udcfe.png", "tab\tnul\0", "plain äöü 日本",
]  # fmt: skip


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_values", {})


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize(
    "around", ["{}", "data.shards={}: does not exist", "({})", "['{}', 'b']", "[{},{}]", '"{}"', "{}; x"]
)
def test_credentials_in_a_url_are_replaced(url: str, around: str) -> None:
    shown = redact(around.replace("{}", url))
    assert SECRET.lower() not in shown.lower()
    assert "example.org" in shown or "bucket" in shown or "blob" in shown or "s3.amazonaws" in shown
    assert redact(shown) == shown


@pytest.mark.parametrize("text", HARMLESS)
def test_text_without_secrets_is_unchanged(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("url", URLS)
def test_no_error_shows_them(url: str) -> None:
    for error in (ConfigError("data.shards", url, f"{url}: no"), DataError(f"{url}: no"), RunError(f"{url}: no"),
                  CheckpointError(url), BrokenSample(url)):  # fmt: skip
        assert SECRET not in str(error)
        assert SECRET not in f"{error}"


def test_no_log_shows_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.WARNING):
        logging.getLogger("swinv2_train.data.remote").warning("%s: trying again", URLS[0])
    assert SECRET not in caplog.text
    assert "trying again" in caplog.text
    console = RunConsole(tmp_path / "log.txt", "x", 10)
    console.message(f"reading {URLS[0]}")
    assert SECRET not in (tmp_path / "log.txt").read_text() + capsys.readouterr().out


@pytest.mark.slow
def test_a_value_from_the_environment_is_stored_as_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDS", f"/mnt/{SECRET}")
    monkeypatch.setenv("STEPS", "1234")
    items = ["data.shards='${oc.env:SHARDS}/train-*.tar'", "data.eval_shards='${data.shards}'",
             "probe.shards=['${oc.env:SHARDS}/p.tar']", "optim.steps='${oc.env:STEPS}'"]  # fmt: skip
    config = compose(["+experiment=simmim_demo", *items])
    assert (config.data.eval_shards, config.optim.steps) == (f"/mnt/{SECRET}/train-*.tar", 1234)
    text = to_yaml(config)
    assert SECRET not in text
    assert "shards: ${oc.env:SHARDS}/train-*.tar" in text
    path = tmp_path / "resolved.yaml"
    path.write_text(text)
    again = from_yaml(path)
    assert again == config
    assert to_yaml(again) == text
    assert changed_since(path, config) == []
    assert redact(f"/mnt/{SECRET}/train-0.tar at step 1234") == "${oc.env:SHARDS}/train-0.tar at step 1234"
    assert SECRET not in json.dumps(redacted({"a": [f"/mnt/{SECRET}", 1]}))
    monkeypatch.delenv("SHARDS")
    assert from_yaml(path, only_read=True).data.shards == "${oc.env:SHARDS}/train-*.tar"
    assert changed_since(path, config) == []
    for read in (lambda: from_yaml(path), lambda: compose(["+experiment=simmim_demo", *items])):
        with pytest.raises(ConfigError, match="SHARDS"):
            read()


ODD = [
    "a/${x}", "${seed}", "a${oc.env:HOME}b", "\\${a}", "a\\\\${b} c\\d",
    "x # y", "x: y", "'q\"", "l1\nl2", "1e-3", "null", "[a,b]", "{a: 1}", " a ", "~", "",
]  # fmt: skip


@pytest.mark.slow
def test_values_from_the_environment_are_resolved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index, value in enumerate(ODD):
        monkeypatch.setenv(f"PLACE_{index}", value)
    shards = ",".join(f"'${{oc.env:PLACE_{index}}}/a.tar'" for index in range(len(ODD)))
    config = compose(["+experiment=simmim_demo", f"data.shards=[{shards},b]"])
    config.data.eval_shards = list(ODD)  # as text that was never an expression
    path = tmp_path / "resolved.yaml"
    path.write_text(to_yaml(config))
    again = from_yaml(path)
    assert again == config
    assert again.data.shards == [*(f"{value}/a.tar" for value in ODD), "b"]
    assert again.data.eval_shards == ODD
    for value in ODD[:5]:  # a key of its own is stored in another way than a list
        config.data.cache_dir = value
        path.write_text(to_yaml(config))
        assert from_yaml(path).data.cache_dir == value


@pytest.mark.slow
@pytest.mark.parametrize("value", ["mode", "data", "simmim", "true"])
def test_a_word_of_the_config_is_not_hidden(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("WORD", value)
    config = compose(["+experiment=simmim_demo", "tracking.wandb_project='${oc.env:WORD}'"])
    assert redact(to_yaml(config)) == to_yaml(config)


def test_the_name_of_the_run_directory_stays_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    config = compose(["+experiment=simmim_demo", "run.dir='${oc.env:SCRATCH}/run'"])
    assert redact(config.run.dir) == "/scratch/me/run"


@pytest.mark.slow
def test_files_of_a_sweep_have_no_secret(tmp_path: Path) -> None:
    job = make_job([f"data.shards={URLS[0]}", "seed=1"], {"seed"})
    assert SECRET not in job.id
    write_job(tmp_path, new_record(job))
    assert SECRET not in (tmp_path / "job.json").read_text()
    multirun = plan_multirun(["+experiment=simmim_demo", f"data.shards='{URLS[0]}'", "seed=0,1"], None)
    given = []
    run_multirun(multirun, "sweep", tmp_path, None, lambda overrides: given.append(list(overrides)))
    assert SECRET in given[1][1]
    assert "optim:" in (tmp_path / "multirun.yaml").read_text()
    assert SECRET not in (tmp_path / "multirun.yaml").read_text()


def test_short_values_are_kept() -> None:
    hide("1", "${oc.env:ONE}")
    assert redact("step 1") == "step 1"


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


def test_names_are_text_in_a_page(tmp_path: Path) -> None:
    entries = [
        replace(Entry.of(Path("x") / name.replace("/", "_"), Image.new("RGB", (4, 4))), bars=[(name, 0.5)])
        for name in NAMES
        if "\0" not in name
    ]
    page = html_sheet(entries, NAMES[0])
    (tmp_path / "sheet.html").write_text(page, encoding="utf-8")
    parser = _Page()
    parser.feed(page)
    assert "script" not in parser.tags
    assert set(parser.attributes) <= {"lang", "charset", "name", "content", "src", "alt", "class", "title", "style"}
    assert png_sheet(entries, NAMES[0]).size[0] > 0
    found = [Prediction(entry.path, [(0, entry.bars[0][0], 0.5)]) for entry in entries]
    (tmp_path / "a.csv").write_text(csv_text(found), encoding="utf-8", errors="surrogateescape")
    (tmp_path / "a.jsonl").write_text(jsonl_text(found), encoding="utf-8", errors="backslashreplace")
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text("utf-8").splitlines()]
    assert [line["image"] for line in lines] == [str(entry.path) for entry in entries]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_text_in_markdown(name: str) -> None:
    text = as_markdown(name)
    assert text.isprintable()
    assert text.encode()
    assert "<" not in text
    for sign in "`*[]|":
        assert text.count(sign) == text.count(f"\\{sign}") == name.count(sign)
    assert len(_table([(name, name)]).splitlines()) == 3
    assert as_html(name).encode()
    assert printable(printable(name)) == printable(name)


@pytest.mark.slow
def test_charts_take_any_name(tmp_path: Path) -> None:
    import numpy as np

    assert as_label("$x$") == "\\$x\\$"
    confusion_chart(np.eye(len(NAMES) - 1), NAMES[:-1]).save(tmp_path / "confusion.png")
    line_chart([Series(name, [1, 2], [1, 2]) for name in NAMES[:4]], x_label="x", y_label="y").save(tmp_path / "l.png")
