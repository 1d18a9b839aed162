"""Open files that the connections of a rank take, and the limit on them.

gloo connects every pair of ranks of every group when the group is made: 511 sockets in each group of 512 ranks. The
usual limit of 1,024 open files is only the soft one, which a process may raise up to its hard limit.
"""

from __future__ import annotations

import resource

from swinv2_train.errors import MainRankError, RunError

GROUPS = {"cuda": 2, "cpu": 4}
"""gloo groups of a rank in training: control messages and those of the saver; without NCCL also those for gradients, of
torch and of DeepSpeed."""
_OWN_FILES = 4
"""Files of a group other than its connections: where it listens, and what its thread waits for."""
_OTHER_FILES = 256
"""Shards (at most 64), pipes and batches of data workers, NCCL, logs. A rank with two workers has about 30 of them."""
_FEW_FILES = 64
"""Without room for at least this many of them, a run is refused."""
_ENOUGH = 1 << 20
"""Some programs loop over all files that a process may open, so the limit is not raised beyond this without need."""


def open_files_needed(world_size: int, device: str) -> int:
    """Return the number of open files that suffices for any rank; rank 0 also has a connection to each for the
    store."""
    return GROUPS[device] * (world_size - 1 + _OWN_FILES) + world_size + _OTHER_FILES


def allow_open_files(world_size: int, device: str, local_rank: int) -> None:
    """Raise this process's limit on open files if its connections to the other ranks need that.

    Args:
        device: `cuda` or `cpu`.

    Raises:
        RunError: if the hard limit is too low; only the first rank of a host has the message.
    """
    needed = open_files_needed(world_size, device)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _within(needed, soft):
        return
    if not _within(needed - _OTHER_FILES + _FEW_FILES, hard):
        text = (
            f"a rank of {world_size} needs up to {needed} open files, mostly connections to the others, and may open "
            f"only {hard} (ulimit -Hn): raise the limit, such as with ulimit -n {needed} as root, LimitNOFILE= of the "
            f"service that starts the ranks, or docker run --ulimit nofile={needed}"
        )
        raise MainRankError(text) if local_rank else RunError(text)
    wanted = max(needed, _ENOUGH)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if _within(wanted, hard) else hard, hard))


def _within(number: int, limit: int) -> bool:
    return limit == resource.RLIM_INFINITY or number <= limit
