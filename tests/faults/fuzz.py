"""Damaged tars, indexes, manifests, cached copies and run files, read by the product and compared with intact twins.

Every case is a function of its kind and number. Its outcome is one of
    same        the samples, or the run, are those of the twin
    reported    an error message or a warning says what is wrong
    valid       the damage made another valid archive, which Python's tarfile reads the same way
    silent      something else, without a message
    traceback   an error that no command turns into a message
"""

from __future__ import annotations

import io
import json
import logging
import random
import shutil
import tarfile
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.config.errors import ConfigError
from swinv2_train.data.errors import BrokenSample, DataError
from swinv2_train.data.index_store import index_path
from swinv2_train.data.shards import IMAGE_AND_TEXTS, ShardSet
from swinv2_train.data.sources import ListedShard, Manifest, manifest_text
from swinv2_train.data.tar import DamagedError, members
from swinv2_train.errors import RunError

MESSAGES = (ConfigError, DataError, CheckpointError, RunError)
"""Errors that every command ends with as one sentence."""
OUTCOMES = ("same", "reported", "valid", "silent", "traceback")
BLOCK = 512
NUMBERS = (-1, 0, 1, 7, 2**31, 2**63, 10**30, 10**400, 0.5, 1e308, None, True, "x", [], {}, "9" * 50)


@dataclass(frozen=True)
class Outcome:
    """Result of a case."""

    outcome: str
    damage: str
    detail: str = ""


class _Listener(logging.Handler):
    """Keeps the warnings of the product."""

    def __init__(self, known: Collection[str]) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        self._known = known

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() not in self._known:
            self.lines.append(record.getMessage())


@contextmanager
def listening(known: Collection[str] = ()) -> Iterator[list[str]]:
    """The warnings of the product in this block, without those that are known."""
    listener, logger = _Listener(known), logging.getLogger("swinv2_train")
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(listener)
    try:
        yield listener.lines
    finally:
        logger.removeHandler(listener)
        logger.propagate = propagates


def judged(damage: str, action: Callable[[list[str]], tuple[bool, str]], twin_said: Collection[str] = ()) -> Outcome:
    """Run a case: `action` gets the list of warnings and returns whether the twin is matched, and how it differs.

    Args:
        twin_said: warnings that the twin has as well, such as those of links in it; they report no damage.
    """
    try:
        with listening(twin_said) as said:
            same, detail = action(said)
    except MESSAGES as error:
        whole = 0 < len(str(error)) < 2000 and "\n" not in str(error)
        return Outcome("reported" if whole else "traceback", damage, str(error)[:300])
    except Exception:
        return Outcome("traceback", damage, traceback.format_exc()[-1500:])
    if same:
        return Outcome("same", damage)
    if detail == "valid":
        return Outcome("valid", damage)
    return Outcome("reported", damage, said[0][:300]) if said else Outcome("silent", damage, detail)


# -- Tars ------------------------------------------------------------------------------------------------------------


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


# -- Indexes, manifests, copies --------------------------------------------------------------------------------------


def damage_bytes(data: bytearray, rng: random.Random) -> str:
    """Change any bytes in place; returns what was done."""
    kind = rng.choice(("bit", "bit", "byte", "cut", "inserted", "removed", "empty", "noise", "zeros", "page", "deep"))
    at = rng.randrange(max(1, len(data)))
    if kind == "bit" and data:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == "byte" and data:
        data[at] = rng.randrange(256)
    elif kind == "cut":
        del data[at:]
    elif kind == "inserted":
        data[at:at] = rng.randbytes(rng.randint(1, 40))
    elif kind == "removed":
        del data[at : at + rng.randint(1, 200)]
    elif kind == "empty":
        data.clear()
    elif kind == "noise":
        data[:] = rng.randbytes(len(data))
    elif kind == "zeros":
        data[:] = bytes(len(data))
    elif kind == "page":
        data[:] = b"<html>log in</html>".ljust(len(data))
    else:
        data[:] = rng.choice((b"[", b'{"a":')) * 100_000
    return kind


def damage_json(text: str, rng: random.Random) -> str:
    """Replace or remove one value of a JSON text, wherever it is; every other value stays."""
    content = json.loads(text)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    if not isinstance(content, (dict, list)) or not content:
        return json.dumps(rng.choice(NUMBERS))
    walk(content)
    node, key = rng.choice(places)
    if rng.random() < 0.2:
        del node[key]
    else:
        node[key] = rng.choice(NUMBERS)
    if rng.random() < 0.1:
        return json.dumps(rng.choice(([], {}, None, 5, "text", [content])))
    return _dumps(content)


def _dumps(content: Any) -> str:
    """JSON with integers of any length."""
    return json.dumps(content)


def damage_text_file(path: Path, rng: random.Random, *, lines: bool = False) -> str:
    """Damage a file of JSON, by bytes or by its values; returns what was done."""
    if rng.random() < 0.5:
        data = bytearray(path.read_bytes())
        kind = damage_bytes(data, rng)
        path.write_bytes(data)
        return kind
    parts = path.read_text().splitlines() if lines else [path.read_text()]
    number = rng.randrange(len(parts))
    parts[number] = damage_json(parts[number], rng)
    path.write_text("\n".join(parts) + ("\n" if lines else ""))
    return "value"


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
        ("index", "index", "index without hash", "manifest", "copy", "index in the cache", "index uploaded")
    )
    path = write_archive(folder / "part.tar", rng) if where != "manifest" else _packed(folder, rng)
    spec, cache = str(path), folder / "cache"
    with listening() as twin_said:
        twin = samples_of(spec, folder / "other cache")
    target = index_path(path)
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
            target = next((cache / "index").iterdir()) if where == "index in the cache" else next(cache.glob("*.tar"))
    damage = (
        damage_text_file(target, rng, lines=target.suffix == ".jsonl") if where != "copy" else _damage_copy(target, rng)
    )
    if where == "index uploaded":
        memory.pipe("/fuzz/part.tar.index.jsonl", target.read_bytes())

    def read(said: list[str]) -> tuple[bool, str]:
        found = samples_of(spec, cache)
        return found == twin, f"{len(found)} of {len(twin)} samples"

    return judged(f"{where}: {damage}", read, [line.replace(str(path), spec) for line in twin_said] + twin_said)


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


# -- Files of runs ---------------------------------------------------------------------------------------------------

RECORDS = (
    "metrics.jsonl", "status.json", "environment.json", "resolved.yaml", "wandb_id.txt", "job.json",
    "incidents/step-00000003-batch-00000002.json", "../pipeline.json", "../sweep.json", "log.txt", "init_from.txt",
)  # fmt: skip
"""Files that only describe a run, a sweep or a pipeline."""


class OneRank:
    """This process alone."""

    rank, world_size = 0, 1

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def broadcast(self, value: Any) -> Any:
        return value


def complete_run(run: Path) -> None:
    """Add to the directory of a finished run the files that only some runs have."""
    from dataclasses import asdict

    from swinv2_train.engine.incidents import Incident, write_incident
    from swinv2_train.engine.state import TrainState
    from swinv2_train.pipeline.state import Record, State, write_state
    from swinv2_train.sweep.job import JobRecord, SweepRecord, write_job, write_sweep

    state = asdict(TrainState(step=2, samples_seen=24))
    config = (run / "resolved.yaml").read_text()
    samples = [{"position": position, "sample": f"a/{position}"} for position in range(24, 36)]
    write_incident(run, Incident(3, "a test", "skip", 2, 1.0, None, 1, 12, [[1.0, None]], 0, samples, state, config))
    write_job(run, JobRecord(run.name, ["seed=1"], {"seed": "1"}, "f", status="finished", metric=0.5))
    write_sweep(run.parent, SweepRecord("s", "eval/loss", "minimize", "last", "f", []))
    write_state(run.parent, State("p", {run.name: Record("simmim", metric="eval/loss", begun=1.0)}))
    (run / "wandb_id.txt").write_text("abcd1234\n")
    (run / "init_from.txt").write_text("encoder.weight loaded\n")


def look_at_run(run: Path) -> dict[str, Any]:
    """Return what a resume reads before it trains, and what the commands show; keys of the state must not change."""
    from swinv2_train.checkpoint.load import load_fragments
    from swinv2_train.checkpoint.survey import read_state as read_checkpoint_state
    from swinv2_train.checkpoint.survey import survey
    from swinv2_train.checkpoint.verify import newest_valid
    from swinv2_train.config.schema import Config
    from swinv2_train.config.tasks import SimMIMConfig
    from swinv2_train.engine.identity import is_used
    from swinv2_train.engine.incidents import protector
    from swinv2_train.engine.start import changed_since, damaged_records, missed_evaluation
    from swinv2_train.engine.state import TrainState
    from swinv2_train.interop.model_card import run_directory
    from swinv2_train.launch.status import read_status
    from swinv2_train.pipeline.report import view
    from swinv2_train.pipeline.run import _state_before
    from swinv2_train.pipeline.state import Record
    from swinv2_train.sweep.job import read_jobs, read_sweep
    from swinv2_train.sweep.values import metric_names, metric_values
    from swinv2_train.tracking.environment import append_environment
    from swinv2_train.tracking.metrics_file import MetricsFile
    from swinv2_train.tracking.sinks import _stored_wandb_id

    said: list[str] = []
    config = Config(task=SimMIMConfig())
    read_status(run), is_used(run), run_directory(run)
    found = newest_valid(run / "checkpoints", OneRank())
    said += found.passed_over
    state = None
    if found.path is not None:
        state = TrainState(**read_checkpoint_state(found.path)["train"]).to_dict()
        load_fragments(found.path, [])
    list(survey(run, hashes=True))
    said += changed_since(run / "resolved.yaml", config)[:1]
    said += damaged_records(run)
    missed_evaluation(run, config, 4, last=False)
    protector(run)()
    view(run.name, Record("simmim", metric="eval/loss"), run)
    metric_names(run), metric_values(run, "eval/loss")
    errors = io.StringIO()
    with redirect_stderr(errors):
        read_jobs(run.parent), read_sweep(run.parent)
    said += errors.getvalue().splitlines()
    _state_before(run.parent, said.append)
    _stored_wandb_id(run)
    append_environment(run, 4)
    said += [str(MetricsFile(run / "metrics.jsonl", 4).dropped_lines)]
    return {"checkpoint": found.path.name if found.path else None, "state": state, "said": said}


def run_case(seed: int, folder: Path, finished: Path) -> Outcome:
    """A damaged file of a finished run: a description of it, or part of its newest checkpoint."""
    rng = random.Random(f"run/{seed}")
    run = folder / "sweep" / "run"
    run.parent.mkdir(parents=True)
    shutil.copytree(finished, run, symlinks=True)
    complete_run(run)
    newest = sorted((run / "checkpoints").iterdir())[-1]
    parts = sorted(path for path in newest.rglob("*") if path.is_file())
    is_record = rng.random() < 0.7
    target = run / rng.choice(RECORDS) if is_record else rng.choice(parts)
    name = target.name if is_record else f"checkpoint {target.relative_to(newest).parts[0]}"
    if is_record and rng.random() < 0.1:
        target.unlink()
        target.mkdir()
        damage = "folder"
    elif target.suffix in (".json", ".jsonl"):
        damage = damage_text_file(target, rng, lines=target.suffix == ".jsonl")
    else:
        data = bytearray(target.read_bytes())
        damage = damage_bytes(data, rng)
        target.write_bytes(data)

    def look(said: list[str]) -> tuple[bool, str]:
        before = target.read_bytes() if target.is_file() else b""
        seen = look_at_run(run)
        if is_record:
            return seen["checkpoint"] == newest.name and seen["state"]["step"] == 8, "another checkpoint"
        passed = [line for line in seen["said"] if line.startswith(newest.name)]
        if passed:
            said += passed
        kept = seen["checkpoint"] == newest.name and before == (finished / target.relative_to(run)).read_bytes()
        return kept, f"took {seen['checkpoint']}"

    return judged(f"{name}: {damage}", look)
