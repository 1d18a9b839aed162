"""Ranks of a job: how a process finds the others, and what they exchange outside of training.

Control messages (flags, counts, small objects) use a separate gloo group on the host, so they never wait for the
accelerator. DeepSpeed handles gradients and parameters. A sum of a few numbers takes log2(ranks) messages
(`doubling.py`), and `begin_sum` computes one in the background.

If a rank dies or stops responding, the others see an error in the next collective. It is raised as `LostRanks`, here
and, through `as_lost_rank`, if it comes from a collective of torch or DeepSpeed.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from swinv2_train.config.errors import ConfigError
from swinv2_train.errors import LostRanks, MainRankError, RunError
from swinv2_train.launch.doubling import GlooChannel, add_up
from swinv2_train.launch.open_files import allow_open_files
from swinv2_train.launch.pending import PendingSum
from swinv2_train.text import counted

_SUM_TAG, _AHEAD_TAG = 1, 2
"""Tags of messages on the control group; `send` and `receive` use torch's default, 0."""
_ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
"""DeepSpeed searches for an MPI job unless all of these are set, even if the process group already exists."""


def under_launcher() -> bool:
    """Return whether a launcher (deepspeed, torchrun) started this process as one rank of a job."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


_GONE = re.compile(
    r"connection (?:closed|reset|refused|timed out)|connectFullMesh failed|timed out|timeout|broken pipe|not connected"
    r"|no route to host|(?:network|host) is unreachable|remote process exit|ncclRemoteError|ncclSystemError"
    r"|communicator was aborted",
    re.IGNORECASE,
)
"""Phrases in errors of gloo and NCCL that mean that a peer is gone; their other errors concern the collective
itself."""
_SPEAKERS = re.compile(r"gloo|NCCL|pair closure")
_REASON_LENGTH = 200


def _reason(error: BaseException) -> str:
    # gloo prefixes its source file and appends advice, torch appends a C++ trace.
    text = (str(error).splitlines() or [type(error).__name__])[0]
    text = re.sub(r"^\[/[^\]]*\]\s*", "", text).split(". This is typically")[0].strip().rstrip(".")
    return text if len(text) <= _REASON_LENGTH else f"{text[:_REASON_LENGTH]}..."


def _is_lost(error: BaseException) -> bool:
    if isinstance(error, (dist.DistNetworkError, dist.DistStoreError)):
        return True
    if type(error) is not RuntimeError and not isinstance(error, dist.DistError):
        return False
    return bool(_SPEAKERS.search(str(error)) and _GONE.search(str(error)))


def as_lost_rank(error: BaseException) -> LostRanks | None:
    """Return the `LostRanks` that an error of any collective means; None for any other error."""
    if isinstance(error, LostRanks):
        return error
    if type(error).__module__.startswith("swinv2_train"):  # already has a message, whatever its cause
        return None
    for cause in (error, error.__cause__):
        if cause is not None and _is_lost(cause):
            rank = dist.get_rank() if dist.is_initialized() else os.environ.get("RANK", "0")
            return LostRanks(
                f"rank {rank} lost contact with another rank ({_reason(cause)}): the remaining ranks end; "
                "rerun the same command to resume from the newest checkpoint"
            )
    return None


@contextlib.contextmanager
def _lost_rank_told() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        lost = as_lost_rank(error)
        if lost is None:
            raise
        raise lost from error


@dataclass(frozen=True)
class _Collective:
    name: str
    number: int
    begun: float
    finished: float | None = None

    def __str__(self) -> str:
        now = time.monotonic()
        end = "not finished" if self.finished is None else f"finished {now - self.finished:.0f} s ago"
        return f"{self.name} number {self.number}, begun {now - self.begun:.0f} s ago, {end}"


@dataclass
class Ranks:
    """This process among the other ranks.

    Every method except `send` and `receive` is a collective: all ranks must call it, in the same order. A `Ranks`
    object may be used by only one thread of the caller.

    Raises:
        LostRanks: from any of them, if another rank died or does not respond.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    control: dist.ProcessGroup
    timeout: datetime.timedelta | None = None
    _last: _Collective | None = field(default=None, repr=False)
    _ahead: _Collective | None = field(default=None, repr=False)
    _pending: PendingSum | None = field(default=None, repr=False)
    _others: list[Ranks] = field(default_factory=list, repr=False)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def device_name(self) -> str:
        """Name of this rank's GPU, or `CPU`."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"

    @property
    def last_collective(self) -> str:
        """The last call in each of these methods' groups, such as `gather number 412, begun 31 s ago, not finished`.

        The number counts the calls since the start; ranks with different numbers are at different places. Safe to call
        from another thread.
        """
        ahead = [str(self._ahead)] if self._ahead else []
        lines = [str(self._last or "none yet"), *ahead, *(str(ranks._last or "none yet") for ranks in self._others)]
        return "; in the background: ".join(lines)

    @contextlib.contextmanager
    def _collective(self, name: str) -> Iterator[None]:
        number = self._last.number + 1 if self._last else 1
        begun = time.monotonic()
        self._last = _Collective(name, number, begun)
        with _lost_rank_told():
            yield
        self._last = _Collective(name, number, begun, time.monotonic())

    def _add_up(self, values: list[float], tag: int) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64)
        return add_up(tensor, self.rank, self.world_size, GlooChannel(self.control, tag)).tolist()

    def end(self, text: str) -> RunError:
        """Return the error that ends a run on all ranks: the main rank's has the message, the others' are silent."""
        return RunError(text) if self.is_main else MainRankError(text)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        with self._collective("barrier"):
            dist.barrier(group=self.control)

    def sum(self, values: list[float]) -> list[float]:
        """Return a few numbers summed over all ranks, bitwise the same on each."""
        with self._collective("sum"):
            return self._add_up(values, _SUM_TAG)

    def begin_sum(self, values: list[float]) -> PendingSum:
        """Begin to sum a few numbers over all ranks in the background, and return at once.

        Other collectives may follow before the result is fetched. The previous sum that was begun must be complete.
        """
        assert self._pending is None or self._pending.complete, "the ranks would confuse the messages of two sums"
        number, begun = self._ahead.number + 1 if self._ahead else 1, time.monotonic()
        self._ahead = _Collective("sum ahead", number, begun)

        def compute() -> list[float]:
            with _lost_rank_told():
                sums = self._add_up(values, _AHEAD_TAG)
            self._ahead = _Collective("sum ahead", number, begun, time.monotonic())
            return sums

        self._pending = PendingSum(compute, alone=self.world_size == 1)
        return self._pending

    def sum_all(self, sums: Mapping[str, float | np.ndarray]) -> dict[str, float | np.ndarray]:
        """Return named numbers and float64 arrays summed over all ranks, in one collective.

        Names and shapes must be the same on every rank.
        """
        names = sorted(sums)
        parts = [np.atleast_1d(np.asarray(sums[name], dtype=np.float64)) for name in names]
        tensor = torch.from_numpy(np.concatenate([part.ravel() for part in parts]))
        with self._collective("sum"):
            dist.all_reduce(tensor, group=self.control)
        ends = np.cumsum([part.size for part in parts])[:-1]
        values = zip(names, np.split(tensor.numpy(), ends), parts, strict=True)
        return {
            name: value.reshape(part.shape) if isinstance(sums[name], np.ndarray) else float(value[0])
            for name, value, part in values
        }

    def gather(self, value: Any) -> list[Any]:
        """Return a small object of every rank, in rank order, on every rank."""
        values: list[Any] = [None] * self.world_size
        with self._collective("gather"):
            dist.all_gather_object(values, value, group=self.control)
        return values

    def broadcast(self, value: Any) -> Any:
        """Return the main rank's small object on every rank."""
        box = [value]
        with self._collective("broadcast"):
            dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    # Not counted as collectives, because the counts of all ranks must stay comparable.
    def send(self, message: bytes) -> None:
        """Send a message to the main rank; blocks until the main rank receives it."""
        size = torch.tensor([len(message)])
        with _lost_rank_told():
            dist.send(size, dst=0, group=self.control)
            if message:
                dist.send(torch.frombuffer(bytearray(message), dtype=torch.uint8), dst=0, group=self.control)

    def receive(self, rank: int) -> bytes:
        """Return the next message of a rank. Only the main rank calls it."""
        size = torch.empty(1, dtype=torch.int64)
        with _lost_rank_told():
            dist.recv(size, src=rank, group=self.control)
            content = torch.empty(int(size), dtype=torch.uint8)
            if len(content):
                dist.recv(content, src=rank, group=self.control)
        return content.numpy().tobytes()

    def another(self) -> Ranks:
        """Return the same ranks with a separate gloo group, for use by one other thread."""
        with self._collective("another group"):
            control = dist.new_group(backend="gloo", timeout=self.timeout)
        other = Ranks(self.rank, self.world_size, self.local_rank, self.device, control, self.timeout)
        self._others.append(other)
        return other


def _set_default_timeout(timeout: datetime.timedelta) -> None:
    # DeepSpeed clones the world group with `new_group(ranks)`, which uses torch's default timeout and not that of
    # init_process_group; a hang there would be unnoticed for half an hour.
    from torch.distributed import constants, distributed_c10d

    for module in (constants, distributed_c10d):
        for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
            if hasattr(module, name):
                setattr(module, name, timeout)


def join(device: str, timeout_minutes: float, join_minutes: float | None = None) -> Ranks:
    """Join the ranks that a launcher has started, or be the only one.

    Args:
        device: `cuda` or `cpu`.
        timeout_minutes: limit on every collective.
        join_minutes: how long to wait for the other ranks; None: `timeout_minutes`.

    Raises:
        ConfigError: if the launcher's variables are inconsistent, or there are more ranks than GPUs.
        RunError: if the ranks do not find each other, or may not open as many files as their connections need.
    """
    timeout = datetime.timedelta(minutes=timeout_minutes)
    _set_default_timeout(timeout)
    launched = under_launcher()
    if launched:
        _check_variables()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    backend = "nccl" if device == "cuda" else "gloo"
    torch_device = torch.device(device, local_rank) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        if not torch.cuda.is_available():
            why = "there are GPUs here, but CUDA does not start (a driver too old for this PyTorch?); use device cpu"
            raise ConfigError("", device, why)
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                "LOCAL_RANK",
                local_rank,
                f"this machine has {counted(torch.cuda.device_count(), 'GPU')}; start one rank per GPU",
            )
        torch.cuda.set_device(torch_device)
        torch.backends.cudnn.deterministic = True  # some kernels add up the gradient of a convolution in any order
    if launched:
        allow_open_files(int(os.environ["WORLD_SIZE"]), device, local_rank)
    try:
        if launched:
            waiting = datetime.timedelta(minutes=join_minutes or timeout_minutes)
            store, rank, world_size = next(dist.rendezvous("env://", timeout=waiting))
            # torchrun keeps its store across a restart; a prefix per attempt keeps the new ranks from reading the
            # addresses of the dead ones.
            store = dist.PrefixStore("attempt" + os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        else:
            store, rank, world_size = dist.HashStore(), 0, 1
            os.environ.update(_ALONE)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
        control = dist.new_group(backend="gloo", timeout=timeout)
    except RuntimeError as error:
        if not launched:
            raise
        raise RunError(_not_joined(error)) from error
    return Ranks(rank, world_size, local_rank, torch_device, control, timeout)


@contextlib.contextmanager
def joined_ranks(device: str, timeout_minutes: float, join_minutes: float | None = None) -> Iterator[Ranks]:
    """Yield this process among the ranks; shut down in order if all went well. Arguments and errors as for `join`.

    Raises:
        LostRanks: instead of the error by which a collective reports that a rank is gone.
    """
    ranks = join(device, timeout_minutes, join_minutes)
    try:
        yield ranks
        # Launchers end the other ranks when one exits, so no rank exits before all are done.
        ranks.barrier()
        leave()
    except BaseException as error:
        # The other ranks may be in a collective; an orderly shutdown would wait for them.
        if ranks.world_size == 1:
            leave()
        lost = as_lost_rank(error)
        if lost is None or lost is error:
            raise
        raise lost from error


def _check_variables() -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        value = os.environ.get(name, "0" if name == "LOCAL_RANK" else "")
        if not value.isdecimal():
            raise ConfigError(
                name, repr(value), "must be a number; the launcher sets it together with RANK and WORLD_SIZE"
            )
    if not os.environ.get("MASTER_ADDR"):
        raise ConfigError("MASTER_ADDR", "''", "must be the address of rank 0; the launcher sets it together with RANK")
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if rank >= world_size:
        raise ConfigError("RANK", rank, f"counts from 0, and WORLD_SIZE={world_size}")


def _not_joined(error: RuntimeError) -> str:
    variables = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    rank, world_size, host, port = (os.environ.get(name, "") for name in variables)
    if "EADDRINUSE" in str(error):
        hint = "another process listens on this port: end it, or use another port (launch.master_port, --master-port)"
    elif not _resolves(host):
        hint = "this machine cannot resolve MASTER_ADDR: set it to the address of rank 0"
    else:
        hint = (
            "check that every rank was started, with the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE, that rank 0 can "
            "be reached there, and the output of the other ranks"
        )
    return f"rank {rank} of {world_size} could not join the others at {host}:{port} ({_reason(error)}): {hint}"


def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True


def leave() -> None:
    """Leave the job's process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
    if {key: os.environ.get(key) for key in _ALONE} == _ALONE:  # else the next run here would expect a launcher
        for key in _ALONE:
            del os.environ[key]
