"""Cases of damaged tars, indexes, manifests, and cached copies."""

from __future__ import annotations

import io
import json
import logging
import random
import tarfile
from pathlib import Path

from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.index_store import index_path, rows_path
from swinv2_train.data.shards import IMAGE_AND_TEXTS, ShardSet
from swinv2_train.data.sources import ListedShard, Manifest, manifest_text
from swinv2_train.data.tar import DamagedError, members
from tests.faults.fuzz import Outcome, damage_text_file, judged, listening

BLOCK = 512


def write_archive(path: Path, rng: random.Random) -> Path:
    """A small archive of any format, with labels, folders, links and long names."""
    tar_format = rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    shared = {"comment": "all"} if tar_format == tarfile.PAX_FORMAT and rng.random() < 0.3 else None
    with tarfile.open(path, "w", format=tar_format, pax_headers=shared) as tar:
        for number in range(rng.randint(2, 6)):
            key = f"{'d' * 60 + '/' + 'e' * 70 if rng.random() < 0.3 else 'img'}{number}"
            if tar_format != tarfile.USTAR_FORMAT and rng.random() < 0.3:
                key = f"{'ü' * 20}{'n' * rng.choice((1, 150))}{number}"
            for extension in ("jpg", "cls", "json")[: rng.randint(1, 3)]:
                info = tarfile.TarInfo(f"{key}.{extension}")
                data = f"{key}.{extension} ".encode() * rng.choice((1, 20, 90))
                info.size, info.mtime = len(data), rng.choice((0, 1.5, 2**34)) if shared else 0
                tar.addfile(info, io.BytesIO(data))
            if rng.random() < 0.3:
                link = tarfile.TarInfo(f"link{number}")
                link.type, link.linkname = rng.choice(
                    ((tarfile.SYMTYPE, "x" * rng.choice((9, 99))), (tarfile.DIRTYPE, ""))
                )
                tar.addfile(link)
    return path


def headers_of(data: bytes) -> list[int]:
    """Where the blocks are that belong to headers, PAX and GNU ones and their data among them."""
    places, at = [], 0
    while at + BLOCK <= len(data) and data[at : at + BLOCK].strip(b"\0"):
        try:
            info = tarfile.TarInfo.frombuf(data[at : at + BLOCK], "utf-8", "surrogateescape")
        except tarfile.HeaderError:  # damaged already
            break
        if info.size < 0 or info.size > len(data):
            break
        blocks = -(-info.size // BLOCK) if info.isreg() or info.type in b"xgLK" else 0
        places += range(at, at + BLOCK * (1 + (blocks if info.type in b"xgLK" else 0)), BLOCK)
        at += BLOCK * (1 + blocks)
    return places or [0]


def with_checksum(header: bytearray) -> bytearray:
    """The header block with the checksum that fits it."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return header


def damage_tar(data: bytearray, rng: random.Random) -> str:
    """Change the headers of an archive in place; returns what was done."""
    places = headers_of(bytes(data))
    at = rng.choice(places)
    block = slice(at, at + BLOCK)
    kind = rng.choice(
        (
            "bit",
            "bit",
            "bit",
            "byte",
            "field",
            "size",
            "pax",
            "zeros",
            "removed",
            "repeated",
            "swapped",
            "cut",
            "behind",
        )
    )
    if kind == "bit":
        data[at + rng.randrange(BLOCK)] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        data[at + rng.randrange(BLOCK)] = rng.randrange(256)
    elif kind == "field":  # under a right checksum
        header, start = data[block], rng.randrange(0, 500)
        for index in range(start, min(start + rng.randint(1, 12), 512)):
            header[index] = rng.randrange(256)
        data[block] = with_checksum(header)
    elif kind == "size":
        header = data[block]
        value = rng.choice(
            (
                b"-0000001000",
                b"\xff" * 12,
                b"\x80" + b"\xff" * 11,
                b"77777777777",
                b"0",
                b"00000000200",
                b"1_0",
                b" ",
                b"9" * 11,
            )
        )
        header[124:136] = value.ljust(12, b"\0")
        data[block] = with_checksum(header)
    elif kind == "pax":
        for number in b"0123456789=\n":
            if data[block].count(number) and rng.random() < 0.4:
                data[at + data[block].index(number)] = rng.choice(b"0123456789=\n -\0")
    elif kind == "zeros":
        data[block] = bytes(BLOCK)
    elif kind == "removed":
        del data[block]
    elif kind == "repeated":
        data[at:at] = data[block]
    elif kind == "swapped":
        other = rng.choice(places)
        data[block], data[other : other + BLOCK] = data[other : other + BLOCK], data[block]
    elif kind == "cut":
        del data[rng.randrange(len(data)) :]
    else:
        data += rng.choice((bytes(data), b"junk" * 300, bytes(100_000)))
    return kind


def samples_of(spec: str, cache: Path) -> list[tuple[str, str, bytes, dict[str, bytes]]]:
    """All that a reader of shards gets."""
    shards = ShardSet.open(spec, cache, retries=0, backoff=0.0)
    try:
        found = []
        for index in range(shards.num_samples):
            try:
                raw = shards.read(index, IMAGE_AND_TEXTS)
                found.append((raw.key, raw.extension, raw.data, raw.texts))
            except BrokenSample as error:
                logging.getLogger("swinv2_train").warning("broken: %s", error)
        return found
    finally:
        shards.close()


def as_tarfile_reads_it(path: Path) -> bool:
    """Return whether the regular members are those that Python's tarfile lists."""
    with path.open("rb") as file:
        try:
            ours = [(m.name, m.offset, m.size) for m in members(file.fileno(), path.name) if m.regular]
        except DamagedError:
            return False
    try:
        with tarfile.open(path, "r:") as tar:
            return ours == [(info.name, info.offset_data, info.size) for info in tar if info.isreg()]
    except (tarfile.TarError, ValueError, OSError):
        return False


def tar_case(seed: int, folder: Path) -> Outcome:
    """An archive with damaged headers."""
    rng = random.Random(f"tar/{seed}")
    path = write_archive(folder / "part.tar", rng)
    with listening() as twin_said:
        twin = samples_of(str(path), folder / "cache")
    index_path(path).unlink()
    data = bytearray(path.read_bytes())
    damage = " + ".join(damage_tar(data, rng) for _ in range(rng.choice((1, 1, 1, 2))))
    path.write_bytes(data)

    def read(said: list[str]) -> tuple[bool, str]:
        found = samples_of(str(path), folder / "cache")
        if found == twin or said:
            return found == twin, "reported"
        return False, "valid" if as_tarfile_reads_it(path) else f"{len(found)} of {len(twin)} samples"

    return judged(damage, read, twin_said)


def _packed(folder: Path, rng: random.Random) -> Path:
    """A shard with an index and a manifest, as the packer leaves them."""
    import hashlib

    from swinv2_train.data.card import Card, Moments

    path = write_archive(folder / "train-000000.tar", rng)
    shards = ShardSet.open(str(path), folder / "unused")
    card = Card(num_samples=shards.num_samples, split="train", class_names=["a", "b"])
    card.channels[3] = card.class_counts[1] = shards.num_samples
    card.moments[3] = Moments(shards.num_samples, [0.5] * 3, [0.3] * 3)
    data = path.read_bytes()
    listed = ListedShard(shards.num_samples, len(data), "fingerprint", hashlib.sha256(data).hexdigest())
    (folder / "train.dataset.json").write_text(manifest_text(Manifest(card.to_json(), {path.name: listed})))
    return path


def _without_hashes(path: Path) -> None:
    """The index as earlier versions wrote it."""
    header, columns = path.read_text().splitlines()
    content = {key: value for key, value in json.loads(header).items() if not key.endswith("sha256")}
    path.write_text(f"{json.dumps(content)}\n{columns}\n")


def index_case(seed: int, folder: Path) -> Outcome:
    """A damaged index, manifest or copy: next to a local shard, or of one behind fsspec."""
    import fsspec

    rng = random.Random(f"index/{seed}")
    where = rng.choice(
        ("index", "rows", "index without hash", "manifest", "copy", "index in the cache", "index uploaded")
    )
    path = write_archive(folder / "part.tar", rng) if where != "manifest" else _packed(folder, rng)
    spec, cache = str(path), folder / "cache"
    with listening() as twin_said:
        twin = samples_of(spec, folder / "other cache")
    target = rows_path(path) if where == "rows" else index_path(path)
    if where != "rows":
        rows_path(path).unlink(missing_ok=True)  # otherwise the index would not be read
    if where == "manifest":
        target = folder / "train.dataset.json"
    elif where == "index without hash":
        _without_hashes(target)
    elif where in ("copy", "index in the cache", "index uploaded"):
        memory = fsspec.filesystem("memory")
        memory.pipe("/fuzz/part.tar", path.read_bytes())
        spec = "memory://fuzz/part.tar"
        if where != "index uploaded":
            memory.rm("/fuzz/part.tar.index.jsonl") if memory.exists("/fuzz/part.tar.index.jsonl") else None
            samples_of(spec, cache)
            for rows in (cache / "index").glob("*.bin"):
                rows.unlink()
            target = next((cache / "index").iterdir()) if where == "index in the cache" else next(cache.glob("*.tar"))
    damagers = {"copy": _damage_copy, "rows": _damage_rows}
    if where in damagers:
        damage = damagers[where](target, rng)
    else:
        damage = damage_text_file(target, rng, lines=target.suffix == ".jsonl")
    if where == "index uploaded":
        memory.pipe("/fuzz/part.tar.index.jsonl", target.read_bytes())

    def read(said: list[str]) -> tuple[bool, str]:
        found = samples_of(spec, cache)
        return found == twin, f"{len(found)} of {len(twin)} samples"

    return judged(f"{where}: {damage}", read, [line.replace(str(path), spec) for line in twin_said] + twin_said)


def _damage_rows(path: Path, rng: random.Random) -> str:
    """Binary rows that are cut, longer, or have other bytes."""
    data = bytearray(path.read_bytes())
    kind = rng.choice(("bytes", "zeros", "cut", "longer"))
    at = rng.randrange(len(data))
    if kind == "cut":
        del data[at:]
    elif kind == "longer":
        data[at:at] = rng.randbytes(rng.choice((1, 8, 32)))
    else:
        some = data[at : at + rng.choice((1, 8, 500))]
        data[at : at + len(some)] = bytes(len(some)) if kind == "zeros" else rng.randbytes(len(some))
    path.write_bytes(data)
    return kind


def _damage_copy(path: Path, rng: random.Random) -> str:
    """A cached copy of the right length, or not, with other headers."""
    data = bytearray(path.read_bytes())
    kind = rng.choice(("headers", "shifted", "page", "zeros", "cut"))
    if kind == "headers":
        damage_tar(data, rng)
    elif kind == "shifted":
        at, by = BLOCK * rng.randrange(len(data) // BLOCK), rng.choice((1, BLOCK))
        data[at:] = bytes(by) + data[at:-by]
    elif kind == "cut":
        del data[rng.randrange(len(data)) :]
    else:
        data[:] = bytes(len(data)) if kind == "zeros" else b"<html>log in</html>".ljust(len(data))
    path.write_bytes(data)
    return kind
