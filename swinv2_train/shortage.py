"""Errors that mean that the machine ran out of a resource, as one sentence with the remedy."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Remedies:
    """Remedies for a lack of memory."""

    gpu: str
    host: str


TRAINING = Remedies(
    gpu="lower engine.micro_batch (the results stay the same), or set model.checkpointing=1 or "
    "model.attention=sequential",
    host="lower data.num_workers, data.prefetch_batches, or engine.micro_batch, or set checkpoint.background=false",
)
_WORKERS = "the number of workers (data.num_workers, or --workers)"
READING = Remedies(gpu=TRAINING.gpu, host=f"lower {_WORKERS}")
"""Of processes that read and decode samples, for a training or another command."""
_GPU = ("CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
_HOST = ("can't allocate memory", "Cannot allocate memory", "not enough memory: you tried to allocate")
_DISK = (errno.ENOSPC, errno.EDQUOT)
_LENGTH = 160
_REQUEST = re.compile(r"tried to allocate ([\d.]+) ?(bytes|[KMGT]iB)", re.IGNORECASE)
_GIB = 2**30


def shortage(error: BaseException, remedies: Remedies = TRAINING) -> str | None:
    """Return the message if an error means that memory, files, threads, or disk space ran out; None for others.

    Args:
        remedies: what the user can do about memory.
    """
    number, named, reason = getattr(error, "errno", None), getattr(error, "filename", None), _reason(error)
    if type(error).__name__ == "OutOfMemoryError" or any(part in str(error) for part in _GPU):
        return f"the GPU is out of memory ({reason}): {remedies.gpu}"
    if isinstance(error, MemoryError) or number == errno.ENOMEM or any(part in str(error) for part in _HOST):
        return f"the host is out of memory, or the limit of this process is low (ulimit -v) ({reason}): {remedies.host}"
    if number in (errno.EMFILE, errno.ENFILE) or "Too many open files" in str(error):
        where = f" ({named})" if named else ""
        return f"too many open files{where}: raise the limit, such as with ulimit -n 65536, or lower {_WORKERS}"
    if "can't start new thread" in str(error) or number == errno.EAGAIN:
        return (
            f"cannot start another process or thread ({reason}): raise the limit (ulimit -u, or that of the "
            f"container), or lower {_WORKERS}"
        )
    if isinstance(error, OSError) and number in _DISK:
        return f"{named or 'the standard output or a temporary file'} cannot be written ({remedied(error)})"
    return None


def _reason(error: BaseException) -> str:
    """Return an error in a few words: of an allocator, the memory that it could not get."""
    if request := _REQUEST.search(str(error)):
        number, unit = request.groups()
        return f"{float(number) / _GIB:,.2f} GiB requested" if unit == "bytes" else f"{number} {unit} requested"
    text = (str(error) or type(error).__name__).splitlines()[0]
    return text if len(text) <= _LENGTH else f"{text[:_LENGTH]}..."


def remedied(error: OSError) -> str:
    """Return the operating system's reason for an error, with the remedy if a disk or quota is full."""
    reason = error.strerror or str(error) or type(error).__name__
    return f"{reason}; make room there, or choose another path" if error.errno in _DISK else reason
