"""A value of a text key is the text that the user writes, in every grammar between the user and the config."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest

from swinv2_train.cli.arguments import shards
from swinv2_train.config.compose import compose, from_yaml, override, to_yaml
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.override_text import in_grammar, quoted, split_list, values_of

TEXTS = (
    "runs/ünï", "runs/日本", "a=b", "(x)", "{x}", "~", "~/x", "it's", "'", '"', 'say "hi"', "a b", "[ab].tar",
    "https://host/a.tar?sig=b&c=d", "outputs/sweeps/lr_wd/lr=0.001,seed=1-5f0c9a1e", "{a,b}-{0..3}.tar",
    "shards/train-{000000..000011}.tar", "1.10", "007", "1_000", "1e3", "true", "back\\slash", "back\\slash=",
    "ends=\\", 'ends="\\', "a#b", "a: b=", "100%", "a;b|c&d", "f(1)", "choice(x", "$x=", "a\tb=", "!x", "<x>", "^x",
    "a`b",
)  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_taken_as_it_is(text: str) -> None:
    for key in ("run.dir", "init_from", "data.shards", "task.auto_augment", "tracking.wandb_project"):
        assert dict(values_of([f"{key}={text}"])) == {key: text}
    assert dict(values_of([f"run.dir={quoted(text)}"])) == {"run.dir": text}
    [once] = in_grammar([f"run.dir={text}"])
    assert in_grammar([once]) == [once]


@pytest.mark.parametrize(
    ("item", "value"),
    [
        ("data.shards=[a-{0..3}.tar,b=c.tar,it's.tar]", ["a-{0..3}.tar", "b=c.tar", "it's.tar"]),
        ("data.shards=[{a,b}.tar, ü.tar]", ["{a,b}.tar", "ü.tar"]),
        ("data.shards=['a,b.tar',c=d.tar]", ["a,b.tar", "c=d.tar"]),
        ("probe.shards=[a.tar,b.tar]", ["a.tar", "b.tar"]),
        ("resume.allow=[data]", ["data"]),
        ("data.shards='a b'", "a b"),
        ("run.dir='~/a b'", "~/a b"),
        ("init_from=null", None),
        ("data.image=${oc.env:X}", "${oc.env:X}"),
        ("model.window=[8,8,[4,8],8]", [8, 8, [4, 8], 8]),
        ("optim.lr_scales={backbone:0.1}", {"backbone": 0.1}),
        ("+engine.deepspeed.zero_optimization.overlap_comm=true", True),
        ("task.option_of_another=a=b", "a=b"),
    ],
)
def test_lists_and_values_of_other_keys_keep_their_grammar(item: str, value: object) -> None:
    assert [found for _, found in values_of([item])] == [value]


def test_random_text_is_taken_or_refused_with_a_sentence() -> None:
    draw = random.Random(0)
    letters = "ab1.é={}[]()~'\",: \\$#&-/+*|"
    taken = 0
    for _ in range(400):
        text = "".join(draw.choices(letters, k=draw.randint(1, 9)))
        with contextlib.suppress(ConfigError):
            [(_, value)] = values_of([f"run.dir={text}"])
            taken += value == text
    assert taken > 250  # the rest is in Hydra's grammar: lists, quotes, several values


def test_a_composed_config_and_its_file_have_the_text(tmp_path: Path) -> None:
    values = {
        "run.dir": f"{tmp_path}/ünï=1,b=(2)", "data.shards": "a-{000000..000011}.tar", "init_from": "it's",
        "run.name": "1.10", "tracking.wandb_group": "lr=1", "data.eval_shards": "https://host/{a,b}.tar?sig=x%2F",
    }  # fmt: skip
    own = tmp_path / "cönfigs = (mine)"
    own.mkdir()
    config = compose([f"{key}={value}" for key, value in values.items()], own)
    found = (config.run.dir, config.data.shards, config.init_from, config.run.name, config.tracking.wandb_group)
    assert (*found, config.data.eval_shards) == tuple(values.values())
    (tmp_path / "resolved.yaml").write_text(to_yaml(config))
    assert from_yaml(tmp_path / "resolved.yaml") == config
    changed = override(to_yaml(config), ["data.image=left=1.png", "run.dir=#1", "data.cache_dir={x}"])
    assert (changed.data.image, changed.run.dir, changed.data.cache_dir) == ("left=1.png", "#1", "{x}")


def test_a_tilde_is_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = compose(["run.dir=~/runs/a=1", "sweep.dir=~/sweep", "init.label_map=~"])
    assert (config.run.dir, config.sweep.dir, config.init.label_map) == (
        "/home/me/runs/a=1",
        "/home/me/sweep",
        "/home/me",
    )


def test_a_comma_of_a_sweep_separates_values() -> None:
    same = ["optim.lr=1,2", "run.dir=a,b", "data.shards='a,b'", "seed=range(0,3)", "data.shards=[a,b],[c]"]
    assert in_grammar(same, several=True) == same
    assert in_grammar(["data.shards={a,b}=.tar"], several=True) == ['data.shards="{a,b}=.tar"']
    with pytest.raises(ConfigError) as caught:
        in_grammar(["init_from=a=1,b=2"], several=True)
    assert str(caught.value).endswith("""'init_from="a=1","b=2"' is several values, 'init_from="a=1,b=2"' is one""")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a,b", ["a", "b"]),
        ("a-{0,1}.tar, [b,c],(d,e)", ["a-{0,1}.tar", "[b,c]", "(d,e)"]),
        ("'a,b',it's,c", ["'a,b'", "it's", "c"]),
        ("", [""]),
        ("a}],b", ["a}]", "b"]),
    ],
)
def test_a_list_is_split_outside_of_brackets_and_quotes(text: str, parts: list[str]) -> None:
    assert split_list(text) == parts


def test_commands_for_finished_weights_read_patterns_in_the_same_way() -> None:
    assert shards(["train-{000000..000011}.tar"]) == "train-{000000..000011}.tar"
    assert shards(["[a-{0,1}.tar,'b c.tar']"]) == ["a-{0,1}.tar", "b c.tar"]
    assert shards(['"~/data/train-*.tar"']) == "~/data/train-*.tar"


def test_a_key_of_any_length_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot read the override 'y{100}'\.\.\.: its key is too long"):
        in_grammar([f"{'y' * 5000}=1"])
