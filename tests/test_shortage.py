"""Errors of a machine that has run out of something are told in one sentence that names what to change."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from swinv2_train.shortage import Remedies, remedied, shortage

GPU = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB\nmore advice"
ALLOCATOR = "[enforce fail at alloc_cpu.cpp:129] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"


def of(number: int, path: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), *([path] if path else []))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            torch.OutOfMemoryError(GPU),
            ("GPU", "2.00 GiB", "engine.micro_batch", "model.checkpointing", "model.attention"),
        ),
        (RuntimeError(f"CUDA error: {GPU}"), ("GPU", "engine.micro_batch")),
        (MemoryError(), ("host", "ulimit -v", "data.num_workers")),
        (RuntimeError(ALLOCATOR), ("host", "ulimit -v")),
        (of(errno.ENOMEM), ("host", "Cannot allocate memory")),
        (of(errno.EMFILE, "/data/a.tar"), ("too many open files (/data/a.tar)", "ulimit -n")),
        (RuntimeError("Too many open files. Communication with the workers is no longer possible."), ("ulimit -n",)),
        (RuntimeError("can't start new thread"), ("thread", "ulimit -u")),
        (of(errno.EAGAIN), ("process", "ulimit -u")),
        (of(errno.ENOSPC, "/run/log.txt"), ("/run/log.txt", "No space left", "make room")),
        (of(errno.EDQUOT), ("the standard output or a temporary file cannot be written", "quota", "make room")),
    ],
    ids=str,
)
def test_a_shortage_is_told_with_its_remedy(error: Exception, words: tuple[str, ...]) -> None:
    text = shortage(error)
    assert text is not None
    assert "\n" not in text
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (torch.OutOfMemoryError(GPU), "the GPU is out of memory (2.00 GiB requested): lower --batch"),
        (
            RuntimeError(f"{ALLOCATOR} allocate 53687091200 bytes. Error code 12 (Cannot allocate memory)"),
            "the host is out of memory, or the limit of this process is low (ulimit -v) (50.00 GiB requested): wait",
        ),
    ],
    ids=["gpu", "host"],
)
def test_a_command_names_its_own_remedies(error: Exception, text: str) -> None:
    assert shortage(error, Remedies(gpu="lower --batch", host="wait")) == text


@pytest.mark.parametrize(
    "error", [ValueError("memory"), RuntimeError("shapes differ"), of(errno.ENOENT, "x"), KeyError()]
)
def test_other_errors_are_not_taken_for_one(error: Exception) -> None:
    assert shortage(error) is None


def test_only_a_full_disk_asks_for_room() -> None:
    assert remedied(of(errno.ENOSPC)) == "No space left on device; make room there, or choose another path"
    assert remedied(of(errno.EACCES)) == "Permission denied"
