"""A header of safetensors is believed only where it fits the file, as the library has it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from swinv2_train.checkpoint.tensor_file import read_header


def entry(begin: Any, end: Any, shape: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(path: Path, header: Any, data: int) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(data))
    return path


def reason(path: Path) -> str | None:
    """Why a file is refused; None where it is not."""
    with path.open("rb", buffering=0) as file:
        try:
            read_header(file)
        except ValueError as error:
            return str(error)
    return None


def library_refuses(path: Path) -> bool:
    try:
        with safe_open(path, framework="numpy"):
            return False
    except (SafetensorError, OSError, ValueError, OverflowError):
        return True


GOOD = {"a": entry(0, 16, [4]), "b": entry(16, 24, [1, 2]), "c": entry(24, 24, [0, 3])}
BAD: dict[str, tuple[Any, int, str]] = {
    "overlap": ({**GOOD, "b": entry(8, 16, [2])}, 24, "'b' begins at byte"),
    "same bytes": ({"a": entry(0, 16, [4]), "b": entry(0, 16, [4])}, 16, "inside 'a'"),
    "hole": ({"a": entry(0, 16, [4]), "b": entry(20, 28, [2])}, 28, "4 bytes before 'b' belong to no tensor"),
    "late start": ({"a": entry(8, 24, [4])}, 24, "8 bytes before 'a'"),
    "tail": (GOOD, 28, "it has 4 bytes after its last tensor"),
    "cut": (GOOD, 20, "it is cut off"),
    "shape": ({"a": entry(0, 16, [5])}, 16, "needs more than 16"),
    "small shape": ({"a": entry(0, 16, [3])}, 16, "'a' has 16 bytes, and its shape [3] of F32 needs 12"),
    "width": ({"a": entry(0, 16, [4], "F64")}, 16, "of F64 needs more than 16"),
    "huge shape": ({"a": entry(0, 16, [2**52, 2**52])}, 16, "needs more than 16"),
    "many sides": ({"a": entry(0, 16, [2**40] * 5000)}, 16, "of 5000 dimensions"),
    "dtype": ({"a": entry(0, 16, [4], "F31")}, 16, "'a' has the unknown dtype 'F31'"),
    "no dtype": ({"a": {"shape": [4], "data_offsets": [0, 16]}}, 16, "has the unknown dtype None"),
    "negative": ({"a": entry(-16, 0, [4])}, 16, "not two numbers of at least 0"),
    "backwards": ({"a": entry(16, 0, [4])}, 16, "before it begins"),
    "half": ({"a": entry(0, 16.0, [4])}, 16, "not two numbers"),
    "one offset": ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [16]}}, 16, "not two numbers"),
    "negative side": ({"a": entry(0, 16, [-4])}, 16, "the shape of 'a' is not a list"),
    "true": ({"a": entry(0, 4, [True])}, 4, "the shape of 'a'"),
    "list": ([1], 0, "does not begin with {"),
    "number": ({"a": 3}, 0, "header entry for 'a' is not an object"),
    "metadata": ({"__metadata__": {"a": 1}, **GOOD}, 24, "__metadata__"),
    "not JSON": (b"{not json", 0, "not JSON"),
    "not UTF-8": (b'{"\xff": 1}', 0, "not UTF-8"),
    "nested": (b'{"a":' + b"[" * 200_000, 0, "nested too deep"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_contradiction_is_one_sentence(tmp_path: Path, kind: str) -> None:
    header, data, sentence = BAD[kind]
    path = write(tmp_path / "x", header, data)
    found = reason(path)
    assert found is not None
    assert sentence in found
    assert "\n" not in found
    assert library_refuses(path)


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    text = json.dumps(entry(0, 16, [4]))
    assert "names 'a' twice" in str(reason(write(tmp_path / "x", f'{{"a":{text},"a":{text}}}'.encode(), 16)))


def test_a_header_longer_than_the_file_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for length, sentence in ((1 << 26, "cut off inside its header"), (1 << 62, "would take")):
        path.write_bytes(length.to_bytes(8, "little") + b"{}")
        assert sentence in str(reason(path))
    path.write_bytes(b"1234567")
    assert "cut off before its header" in str(reason(path))


def test_damaged_files_are_refused_wherever_the_library_refuses_them(tmp_path: Path) -> None:
    """Our check may only be stricter, and is so only for a name that occurs twice or is not a string."""
    rng = random.Random(0)
    path = tmp_path / "x.safetensors"
    tensors = {f"block.{n}": np.arange(n * 3, dtype=(np.float32, np.int64)[n % 2]).reshape(n, 3) for n in range(5)}
    save_file(tensors, path, {"format": "pt"})
    whole = path.read_bytes()
    assert reason(path) is None
    header = 8 + int.from_bytes(whole[:8], "little")
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole)
        kind = rng.randrange(4)
        if kind == 0:
            del damaged[rng.randrange(len(damaged)) :]
        elif kind == 1:
            damaged[rng.randrange(header)] ^= 1 << rng.randrange(8)
        elif kind == 2:  # another digit for one of the numbers
            places = [place for place in range(8, header) if chr(damaged[place]).isdigit()]
            damaged[rng.choice(places)] = rng.choice(b"0123456789")
        else:
            damaged += bytes(rng.randrange(1, 9))
        path.write_bytes(damaged)
        found = reason(path)
        refused += found is not None
        if library_refuses(path):
            assert found is not None, bytes(damaged[:header])
        elif found is not None:
            assert "twice" in found, found
    assert refused > 100
