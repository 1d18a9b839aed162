"""The preflight: before the first step, check that all ranks match and that there is room to run.

Report all mismatches together, with rank and host, before they cause a hang or a wrong number hours later.
Differences in code, config, packages, Python, or data end the run. A slow network, a skewed clock, a GPU that another
process uses, or a full disk only produces a warning, because it may be harmless.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import torch
import torch.distributed as dist

from swinv2_train.config.compose import to_yaml
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import Config
from swinv2_train.data.configured import OpenedSets
from swinv2_train.data.errors import DataError
from swinv2_train.data.workers import SHARED_MEMORY
from swinv2_train.errors import MainRankError
from swinv2_train.exit_codes import FAILED, code_of
from swinv2_train.launch.failures import on_main, together
from swinv2_train.launch.ranks import Ranks
from swinv2_train.tracking.environment import PACKAGES, version

_PACKAGE_DIR = Path(__file__).resolve().parent.parent
_CLOCK_SECONDS = 2.0
_BUSY_SHARE = 0.9
"""A GPU with less than this fraction of its memory free is in use by another process."""
_ALL_REDUCE_MIB = {"cuda": 256, "cpu": 4}
_ROUNDS = 3
_SLOW_SHARE = 3.0
"""A rank is reported if it needs this many times the median for a batch."""
_SHARED_SECONDS = 15.0
"""Seconds until a file must be visible on other hosts."""


@dataclass(frozen=True)
class Facts:
    """Facts about one rank."""

    rank: int
    host: str
    code: str
    """Hash of the package's source files."""
    config: str
    """Config as YAML."""
    python: str
    packages: dict[str, str | None]
    device: str
    disk_free: int = 0
    """Free bytes for run.dir."""
    sees_run_dir: bool = True
    """True if its run.dir is that of the main rank: a file that the main rank creates there is visible here."""
    memory: tuple[int, int] | None = None
    """Free and total bytes of the GPU."""
    shared_free: int | None = None
    """Free bytes in the shared memory of its host; None if it has none."""
    problem: str | None = None
    """Error on this rank before the preflight."""
    problem_code: int = FAILED
    """Exit code of that error."""
    clock: float = field(default=0.0, compare=False)
    """Clock of the rank at a moment when all ranks were at the same place, in seconds."""

    @property
    def place(self) -> str:
        return f"rank {self.rank} on {self.host}"


@cache
def code_digest() -> str:
    """Return a hash of the source files of the package."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE_DIR.rglob("*.py")):
        digest.update(str(path.relative_to(_PACKAGE_DIR)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def collect_facts(config: Config, ranks: Ranks, problem: Exception | None) -> Facts:
    """Return the facts of this rank. A collective, so that all clocks are read at the same moment."""
    place = Path(config.run.dir)
    while not place.exists() and place != place.parent:
        place = place.parent
    memory = torch.cuda.mem_get_info(ranks.device) if ranks.device.type == "cuda" else None
    facts = Facts(
        rank=ranks.rank,
        host=socket.gethostname(),
        code=code_digest(),
        config=to_yaml(config),
        python=platform.python_version(),
        packages={name: version(name) for name in PACKAGES},
        device=ranks.device_name,
        disk_free=shutil.disk_usage(place).free,
        memory=memory,
        shared_free=free_shared_memory(),
        sees_run_dir=_sees_run_dir(Path(config.run.dir), ranks),
        problem=str(problem) if problem else None,
        problem_code=(code_of(problem) if problem else None) or FAILED,
    )
    ranks.barrier()
    return replace(facts, clock=time.time())


def _sees_run_dir(directory: Path, ranks: Ranks) -> bool:
    """Return whether a file that the main rank creates in its run.dir appears in this rank's. A collective."""

    def make() -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".preflight-", dir=directory)
        os.close(handle)
        return Path(name)

    made: list[Path] = []
    on_main(ranks, lambda: made.append(make()))
    name = ranks.broadcast(made[0].name if made else None)
    deadline = time.monotonic() + _SHARED_SECONDS
    while not (seen := (directory / name).exists()) and time.monotonic() < deadline:
        time.sleep(0.2)  # a network file system may show it with a delay
    ranks.barrier()
    for path in made:
        path.unlink(missing_ok=True)
    return seen


def free_shared_memory() -> int | None:
    """Return the free bytes in the shared memory of this host; None if it has none."""
    try:
        return shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return None


def differences(everyone: Sequence[Facts]) -> list[str]:
    """Return a sentence for every mismatch that prevents training; rank 0 is the reference.

    Ranks of one host with the same mismatch are reported together.
    """
    first = everyone[0]
    found: dict[str, list[Facts]] = {}

    def note(text: str, facts: Facts) -> None:
        found.setdefault(text, []).append(facts)

    for facts in everyone:
        if facts.problem:
            note(facts.problem, facts)
    for facts in everyone[1:]:
        if facts.python.split(".")[:2] != first.python.split(".")[:2]:
            note(f"Python {facts.python}, but {first.place} has {first.python}", facts)
        for name, here in facts.packages.items():
            there = first.packages.get(name)
            if here != there:
                note(f"{name} {here or 'is missing'}, but {first.place} has {there or 'none'}", facts)
        if not facts.sees_run_dir:
            note(f"its run.dir is not that of {first.place}: all ranks must share one", facts)
        if facts.code != first.code:
            note(f"its source of swinv2-train is {facts.code}, but that of {first.place} is {first.code}", facts)
        if facts.problem is None and first.problem is None and facts.config != first.config:
            line = _first_difference(facts.config, first.config)
            note(f"was started with another config than {first.place}: {line}", facts)
    return [f"{_places(group)}: {text}" for text, group in found.items()]


def _first_difference(here: str, there: str) -> str:
    pairs = zip(here.splitlines(), there.splitlines(), strict=False)
    line, other = next(((a, b) for a, b in pairs if a != b), (here.splitlines()[-1], there.splitlines()[-1]))
    return f"{line.strip()}, but there {other.strip()}"


def _places(group: Sequence[Facts]) -> str:
    hosts: dict[str, list[int]] = {}
    for facts in group:
        hosts.setdefault(facts.host, []).append(facts.rank)
    parts = []
    for host, numbers in hosts.items():
        name = f"rank {numbers[0]}" if len(numbers) == 1 else f"ranks {', '.join(map(str, numbers))}"
        parts.append(f"{name} on {host}")
    return " and ".join(parts) if len(parts) < 4 else f"{parts[0]} and {len(parts) - 1} more hosts"


def warnings(everyone: Sequence[Facts], checkpoint_bytes: int) -> list[str]:
    """Return a line for everything that may fail later.

    Args:
        checkpoint_bytes: size of one checkpoint.
    """
    lines = []
    middle = sorted(facts.clock for facts in everyone)[len(everyone) // 2]
    for facts in _one_per_host(everyone):
        if abs(facts.clock - middle) > _CLOCK_SECONDS:
            lines.append(f"the clock of {facts.host} is {facts.clock - middle:+.1f} s off")
        if facts.disk_free < 2 * checkpoint_bytes:
            free, need = facts.disk_free / 2**30, checkpoint_bytes / 2**30
            lines.append(f"{facts.host} has {free:.1f} GiB free for run.dir, and one checkpoint needs {need:.1f}")
        if facts.device != everyone[0].device:
            lines.append(f"{facts.host} has {facts.device}, but {everyone[0].host} {everyone[0].device}")
    for facts in everyone:
        if facts.memory and facts.memory[0] < _BUSY_SHARE * facts.memory[1]:
            free, whole = (size / 2**30 for size in facts.memory)
            lines.append(f"{facts.place}: {free:.1f} of {whole:.1f} GiB of its GPU are free; another process uses it")
    return lines


def _one_per_host(everyone: Sequence[Facts]) -> list[Facts]:
    return list({facts.host: facts for facts in reversed(everyone)}.values())[::-1]


def bus_bandwidth(ranks: Ranks) -> float:
    """Return the bus bandwidth of an all-reduce over all ranks, in bytes per second: 2 (n - 1) / n of the tensor's
    bytes.

    It is the same on every rank and comparable with `busbw` of NVIDIA's nccl-tests. A collective.
    """
    size = _ALL_REDUCE_MIB[ranks.device.type] * 2**20
    tensor = torch.zeros(size // 4, dtype=torch.float32, device=ranks.device)

    def reduce() -> None:
        dist.all_reduce(tensor)
        if ranks.device.type == "cuda":
            torch.cuda.synchronize(ranks.device)

    reduce()  # warm-up: establishes the connections
    ranks.barrier()
    begun = time.perf_counter()
    for _ in range(_ROUNDS):
        reduce()
    seconds = max(ranks.gather(time.perf_counter() - begun)) / _ROUNDS
    return 2 * (ranks.world_size - 1) / ranks.world_size * size / seconds


def compare(
    config: Config, ranks: Ranks, problem: Exception | None, open_data: Callable[[], OpenedSets]
) -> tuple[OpenedSets, list[Facts]]:
    """Open the data on the main rank, compare all ranks, and send them the opened data. A collective.

    The other ranks open nothing; one of each host checks that it has the first and the last local shard of each set.

    Args:
        problem: an error that already occurred on this rank.
        open_data: opens the training shards and the held-out shards, or None for the latter.

    Returns:
        The opened data, and the facts of every rank.

    Raises:
        ConfigError, DataError, CheckpointError: the error, if all ranks have one, or if the data cannot be opened.
        RunError: with all mismatches of the ranks; only the main rank's has a message.
    """
    data, refused = None, None
    if ranks.is_main and problem is None:
        try:
            data = open_data()
        except (ConfigError, DataError) as error:
            problem, refused = error, (str(error), code_of(error) or FAILED)
    refused, witnesses = ranks.broadcast((refused, _witnesses(data)))
    if problem is None:
        problem = MainRankError(*refused) if refused else _missing_here(ranks, witnesses)
    everyone = ranks.gather(collect_facts(config, ranks, problem))
    if problem is not None and all(facts.problem for facts in everyone):
        raise problem if ranks.is_main else MainRankError(str(problem), everyone[0].problem_code)
    wrong = differences(everyone)
    if wrong:
        raise ranks.end("; ".join(wrong))
    return ranks.broadcast(data), everyone


def _witnesses(data: OpenedSets | None) -> list[tuple[str, int]]:
    """Return path and bytes of the first and the last shard of each set, as far as they are local."""
    ends = [part.shards[number] for part in data or () if part is not None for number in (0, -1)]
    return list(dict.fromkeys((shard.url, shard.size) for shard in ends if shard.file is None))


def _missing_here(ranks: Ranks, witnesses: Sequence[tuple[str, int]]) -> DataError | None:
    """Return an error if this host does not have the shards of the main rank; only one rank of each host looks."""
    if ranks.is_main or ranks.local_rank:
        return None
    for path, size in witnesses:
        try:
            found = os.stat(path).st_size
        except OSError as error:
            hint = "every host needs all shards under the same path"
            return DataError(f"{path}, which the main rank has opened, cannot be read here ({error.strerror}): {hint}")
        if found != size:
            return DataError(f"{path} has {found:,} bytes here, and {size:,} for the main rank: copy the shards again")
    return None


def report(everyone: Sequence[Facts], num_shards: int, checkpoint_bytes: int) -> list[str]:
    """Return what all ranks have in common and what may fail later, one line each.

    Args:
        num_shards: number of training and held-out shards.
        checkpoint_bytes: size of one checkpoint.
    """
    first, hosts = everyone[0], _one_per_host(everyone)
    source = f"swinv2-train {first.packages.get('swinv2-train')} ({first.code})"
    versions = f"torch {first.packages['torch']}, deepspeed {first.packages['deepspeed']}, Python {first.python}"
    clocks = [facts.clock for facts in everyone]
    lines = [
        f"{_count(len(hosts), 'host')}, {_count(len(everyone), 'rank')}: {source}, {versions}",
        f"clocks within {max(clocks) - min(clocks):.2f} s; "
        f"{min(facts.disk_free for facts in everyone) / 2**30:.0f} GiB free for run.dir",
        f"{_count(num_shards, 'shard')} opened by the main rank; every host sees the first and the last local ones",
    ]
    free = [facts.memory[0] for facts in everyone if facts.memory]
    if free:
        lines.append(f"at least {min(free) / 2**30:.1f} GiB of GPU memory free on every rank")
    return [*lines, *(f"warning: {line}" for line in warnings(everyone, checkpoint_bytes))]


def measure(ranks: Ranks, read: Callable[[], float]) -> list[str]:
    """Time the network and one batch; return one line each. A collective.

    Raises:
        DataError, RunError: if a rank cannot read its batch.
    """
    lines = []
    if ranks.world_size > 1:
        mib, speed = _ALL_REDUCE_MIB[ranks.device.type], bus_bandwidth(ranks)
        lines.append(f"all-reduce of {mib} MiB over {ranks.world_size} ranks: {speed / 1e9:.2f} GB/s on the bus")
    seconds = together(ranks, read)
    times = sorted(ranks.gather((seconds, f"rank {ranks.rank} on {socket.gethostname()}")))
    (middle, _), (worst, where) = times[len(times) // 2], times[-1]
    slow = f"; {where} needs {worst:.2f} s" if worst > _SLOW_SHARE * middle else ""
    return [*lines, f"one process reads and decodes a micro-batch in {middle:.2f} s{slow}"]


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
