"""Every class of wrong command ends with its sentence in `wrong_commands.txt`, exit code, and no import of torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.cli.wrong_commands import FILE, commands
from tests.runs import environment

TABLE = {command: (sentence, code) for command, sentence, code in commands(FILE.read_text())}
SCRIPT = """
import dataclasses, json
from tests.cli.wrong_commands import all_ended
print(json.dumps([dataclasses.asdict(each) for each in all_ended()]))
"""


@pytest.fixture(scope="module")
def endings() -> dict[str, dict[str, object]]:
    """The end of every command, all in one process that has not imported torch."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment(), check=True)
    return {each["command"]: each for each in json.loads(done.stdout)}


@pytest.mark.slow
@pytest.mark.parametrize("command", TABLE)
def test_a_wrong_command_ends_with_its_sentence(command: str, endings: dict[str, dict[str, object]]) -> None:
    assert endings[command] == {
        "command": command,
        "code": TABLE[command][1],
        "output": "",
        "error": f"{TABLE[command][0]}\n",
        "imported": [],
    }


def test_the_table_has_every_class_once() -> None:
    assert len(TABLE) == FILE.read_text().count("\n$ ") > 100
    assert all(sentence.startswith("swinv2-") for sentence, _ in TABLE.values())
