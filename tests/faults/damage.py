"""Harm to the files of a run between two starts, and a full disk."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path


def newest(checkpoints: Path) -> Path | None:
    """The newest checkpoint of a run, if it has one."""
    return max(checkpoints.glob("step-*"), default=None)


def _any_file(checkpoint: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(path for path in checkpoint.rglob("*") if path.is_file()))


def truncate(checkpoint: Path, rng: random.Random) -> None:
    """Cut a file short."""
    path = _any_file(checkpoint, rng)
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def delete_file(checkpoint: Path, rng: random.Random) -> None:
    """Remove a file."""
    _any_file(checkpoint, rng).unlink()


def flip_bit(checkpoint: Path, rng: random.Random) -> None:
    """Change one bit of a file."""
    path = _any_file(checkpoint, rng)
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def delete_manifest(checkpoint: Path, rng: random.Random) -> None:
    """Remove what says which files there are."""
    (checkpoint / "manifest.json").unlink()


def delete_others(checkpoint: Path, rng: random.Random) -> None:
    """Remove all checkpoints but one, whichever."""
    every = sorted(checkpoint.parent.glob("step-*"))
    spared = rng.choice(every)
    for path in every:
        if path != spared:
            shutil.rmtree(path)


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "file truncated": truncate,
    "file deleted": delete_file,
    "bit flipped": flip_bit,
    "manifest deleted": delete_manifest,
    "checkpoints deleted": delete_others,
}
"""By name: what can happen to the newest checkpoint."""


def spoil(checkpoints: Path, kind: str, rng: random.Random) -> bool:
    """Do a damage to the newest checkpoint of a run; False if there is none."""
    target = newest(checkpoints)
    if target is not None:
        DAMAGES[kind](target, rng)
    return target is not None


def remove(directory: Path) -> None:
    """Remove a directory that a run is working in, and may be removing parts of itself."""
    while directory.exists():
        shutil.rmtree(directory, ignore_errors=True)


def break_samples(shard: Path, count: int) -> None:
    """Overwrite the pictures of the first `count` samples of a tar in place; the tar stays whole."""
    import tarfile

    with tarfile.open(shard) as tar:
        places = [(member.offset_data, member.size) for member in tar if member.isfile()][:count]
    with shard.open("r+b") as file:
        for offset, size in places:
            file.seek(offset)
            file.write(b"\xa5" * size)


class NoMountError(Exception):
    """Why no small disk can be mounted here."""


@contextlib.contextmanager
def small_disk(directory: Path, kib: int) -> Iterator[None]:
    """Mount a separate disk of N KiB at a directory.

    Raises:
        NoMountError: where this user or machine cannot mount one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    try:
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(directory)]
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise NoMountError(f"there is no mount command ({error.strerror})") from error
    if done.returncode:
        raise NoMountError(done.stderr.strip() or f"mount ended with code {done.returncode}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def fill(directory: Path, name: str = "ballast") -> Path:
    """Fill the disk of a directory with one file."""
    path = directory / name
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return path
