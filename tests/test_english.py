"""Plain English in comments, docstrings, messages, pages, and test names: phrases to avoid, with replacements.

The number of findings may only fall: `CEILINGS` holds what is left. Run this file to list them:

    python -m tests.test_english
"""

from __future__ import annotations

import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PHRASES = {
    r"\bhangs? on\b": "depends on",
    r"\bmend(s|ed)?\b(?!\s*=)": "fix",
    r"\bso many\b(?! \w+ that)": "N: every N steps",
    r"\ba person\b": "the user, or nothing",
    r"\bwrong use\b": "usage error",
    r"\banew\b": "again, from scratch",
    r"\b(as|for) ever\b": "as usual, forever",
    r"\b(is|are|was|were) said\b": "is reported, is logged",
    r"\bsays? so\b": "logs it",
    r"\bmade up for\b": "runs on resume",
    r"\b(became of|came to[,.;])": "result, outcome",
    r"\bto be had\b": "available",
    r"\bcannot be meant\b": "is inconsistent",
    r"\bbesides?\b": "next to, in addition to, during",
    r"\bpass(ed|ing)? over\b(?! the (data|steps))": "skip",
    r"\b(exists|begun|there) already\b": "already exists",
    r"\b(leave|left) (\S+ ){1,4}away\b": "omit",
    r"(?<!there )\b(is|are) no (?!longer\b|more\b|less\b|different\b|reason\b|substitute\b)": "is not a",
    r"\bfrom (here|there|\d+) on(?! the)": "at least N, from now on",
    r", for (it|they|nobody|there|digits|the paper)\b": "because",
    r'^\s*"""(What|Whose|Whoever|Whether|Which|How)\b': "a noun phrase, or an imperative verb",
    r"\b(neighbour|colour|normalis|initialis|standardis|labell|modelling|licence)": "American spelling",
    r"\b(centre|grey)s?\b": "American spelling",
    r"(\d|\bx) %": "31%",  # x: what an f-string inserts
}
"""Pattern and replacement."""
CEILINGS: dict[str, int] = {
    r"\b(neighbour|colour|normalis|initialis|standardis|labell|modelling|licence)": 1,
}


def python_text(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of the comments and strings of a Python file, without what f-strings insert."""
    source = path.read_text()
    lines = source.splitlines()
    middle = getattr(tokenize, "FSTRING_MIDDLE", None)  # Python 3.12 splits f-strings
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (tokenize.COMMENT, tokenize.STRING, middle):
            continue
        text = token.string
        if token.type == tokenize.STRING and re.match(r"\w*[fF]\w*['\"]", text):
            text = re.sub(r"\{[^{}]*\}", "x", text)
        if token.type != tokenize.COMMENT and re.fullmatch(r"[\w.=/-]*", text.strip("rbfuRBFU\"'")):
            continue  # an identifier or a key
        for offset, line in enumerate(text.splitlines()):
            yield token.start[0] + offset, line
    for number, line in enumerate(lines, 1):
        if name := re.match(r"\s*(?:async )?def (test_\w+)", line):
            yield number, name[1].replace("_", " ")


def markdown_text(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of a page outside of fences and indented blocks."""
    fenced = False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("    "):
            yield number, line


def commented_text(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of the comments of a YAML file or a shell script."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if comment := re.search(r"(?:^|\s)#(.*)", line):
            yield number, comment[1]


def findings() -> Iterator[tuple[str, str, int, str]]:
    """Yield (pattern, file, line, match) of every phrase to avoid."""
    readers = {".py": python_text, ".md": markdown_text, ".yaml": commented_text, ".sh": commented_text}
    folders = ("swinv2_train", "tests", "conf", "scripts", "launch", "docker")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*")) if path.suffix in readers]
    for path in [*paths, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        if path == Path(__file__).resolve() or path.name == "REFERENCE.md":  # generated from docstrings
            continue
        for number, line in readers[path.suffix](path):
            line = re.sub(r"`[^`]*`", "`x`", line)
            for pattern in PHRASES:
                for match in re.finditer(pattern, line):
                    yield pattern, str(path.relative_to(ROOT)), number, match[0].strip()


@pytest.fixture(scope="module")
def counts() -> Counter[str]:
    return Counter(pattern for pattern, *_ in findings())


@pytest.mark.slow
@pytest.mark.parametrize("pattern", PHRASES)
def test_the_phrase_does_not_come_back(pattern: str, counts: Counter[str]) -> None:
    ceiling = CEILINGS.get(pattern, 0)
    assert counts[pattern] <= ceiling, f"write {PHRASES[pattern]!r} (python -m tests.test_english lists the places)"


if __name__ == "__main__":
    for found in findings():
        print("{1}:{2}: {3!r}: write {4!r}".format(*found, PHRASES[found[0]]))
