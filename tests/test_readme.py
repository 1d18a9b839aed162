"""Every command block of the README and of the pages in the package runs, in order, in a folder with images in it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from swinv2_train.config.compose import compose
from tests.documents import blocks, own_tasks, python_files, run_block
from tests.runs import losses, make_images

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = blocks(ROOT / "README.md")
PACKAGE_PAGES = sorted(ROOT.glob("swinv2_train/*/*.md"))


def test_the_first_block_names_the_two_commands() -> None:
    """It is what a new user runs and what runs these tests, so here it is only held to exist."""
    scripts = re.findall(r"^(\S+)", BLOCKS[0], re.MULTILINE)
    assert scripts == ["scripts/demo.sh", "scripts/test.sh"]
    assert all((ROOT / script).stat().st_mode & 0o111 for script in scripts)


@pytest.fixture(scope="module")
def ran() -> set[str]:
    """The commands that ran: several pages repeat some of them, and a page on its own has only dry runs."""
    return set()


@pytest.mark.distributed
def test_every_other_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ran: set[str]) -> None:
    """Those of the pages use the runs and shards that the README's have made."""
    make_images(tmp_path / "my-images", 40, 0)
    for seed, name in enumerate(("cats", "dogs"), start=1):
        make_images(tmp_path / "my-classes" / name, 20, seed)
    assert len(BLOCKS) > 3
    for block in BLOCKS[1:]:
        run_block(block, tmp_path, monkeypatch, ran)
    assert len(losses(tmp_path / "runs" / "mine")) > 5
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    assert len(losses(tmp_path / "runs" / "classes")) > 5
    assert "dogs" in (tmp_path / "sheet.html").read_text()
    assert (tmp_path / "timm-export" / "model.safetensors").is_file()
    for page in PACKAGE_PAGES:
        python_files(page, tmp_path)
        with own_tasks(tmp_path):
            for block in blocks(page):
                run_block(block, tmp_path, monkeypatch, ran)
    assert len(losses(tmp_path / "runs" / "light")) == 4


@pytest.mark.slow
def test_the_blocks_of_the_page_on_configs_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ran: set[str]
) -> None:
    text = (ROOT / "conf" / "README.md").read_text()
    (tmp_path / "my-configs" / "experiment").mkdir(parents=True)
    (recipe,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my-configs" / "experiment" / "tiles.yaml").write_text(recipe)
    for block in blocks(ROOT / "conf" / "README.md"):
        run_block(block, tmp_path, monkeypatch, ran)
    last = capsys.readouterr().out.rpartition("\nrun ")[2]
    assert "tiles in outputs/tiles" in last
    assert "13 channels, 96x96 pixels" in last


PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("[a-z]*/README.md")),
    *PACKAGE_PAGES,
    ROOT / "scripts" / "bench" / "README.md",
]
RUN = re.compile(
    r"(?:docker run .* )?(?:\w+=\S+ )*(?:swinv2-train(?::\S+)?|sbatch .*slurm\.sbatch|\S*torchrun\.sh"
    r"|(?:deepspeed|torchrun) .*swinv2_train\.cli\.train) (.*)"
)
"""A command that starts a run, and what follows."""


def runs_elsewhere(page: Path) -> list[list[str]]:
    """The overrides of a page's commands for machines that a test does not have: fenced as text, or inside a line."""
    text = page.read_text()
    fenced = "".join(re.findall(r"```text\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ").splitlines()
    inline = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    starts = [RUN.fullmatch(" ".join(command.split())) for command in (*fenced, *inline)]
    words = [shlex.split(start[1], comments=True) for start in starts if start]
    return [[word for word in line if "=" in word and not re.search(r"^--|=(?:\.\.\.$|<)", word)] for line in words]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_for_other_machines_have_a_config(page: Path) -> None:
    for overrides in runs_elsewhere(page):
        compose(overrides)


def test_the_pages_have_such_commands() -> None:
    assert {page.parent.name for page in PAGES if any(runs_elsewhere(page))} >= {ROOT.name, "launch", "docker"}


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "conf" / "REFERENCE.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


def test_every_experiment_is_in_the_table() -> None:
    from swinv2_train.config.compose import experiments

    text = (ROOT / "README.md").read_text()
    for name, _ in experiments():
        assert f"`{name}`" in text


def test_nothing_is_left_to_be_filled_in() -> None:
    text = (ROOT / "README.md").read_text()
    assert not re.search(r"^[A-Z_]{4,}$|TODO|TBD", text, re.MULTILINE)
    for path in re.findall(r"`(?:python |pytest |OMP_NUM_THREADS=1 python )([\w/]+\.py)", text):
        assert (ROOT / path).is_file(), path


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 10 * 1024


def test_every_page_is_reached_from_the_readme() -> None:
    seen, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        seen.add(page)
        links = re.findall(r"\]\((?!https?:)([^)#]+\.md)", page.read_text())
        todo += [target for link in links if (target := (page.parent / link).resolve()) not in seen]
    assert set(PAGES) <= seen
