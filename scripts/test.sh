#!/usr/bin/env bash
# Run lint and the entire test suite, or with --quick as the first argument only its fast tests. Other arguments go to pytest:
# scripts/test.sh tests/models -k attention
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/env.sh

extra=1
if [ "${1:-}" = --quick ]; then
    extra=0
    set -- -m "not slow and not distributed and not gpu" "${@:2}"
fi

# One thread per process: tests start several processes, and OpenMP threads that wait for each other only cost time.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# If no GPU is visible, DeepSpeed does not need to search for one.
python -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' || export DS_ACCELERATOR=cpu

ruff check .
ruff format --check .
# The tests flush thousands of checkpoints to disk, which is much faster in memory. So use /dev/shm if 16 GiB of memory are
# free, also within the container's limit, and if files there can be executed.
free_gib() {
    local group=/sys/fs/cgroup limit
    limit=$(cat "$group/memory.max" 2>/dev/null || echo max)
    {
        awk '/^MemAvailable:/ { print int($2 / 1048576) }' /proc/meminfo
        df --output=avail -k /dev/shm | awk 'END { print int($1 / 1048576) }'
        [ "$limit" = max ] || echo $(((limit - $(cat "$group/memory.current")) >> 30))
    } | sort -n | head -n 1
}
in_memory() {
    [ -d /dev/shm ] && [ "$(free_gib)" -ge 16 ] || return 1
    scratch=$(mktemp -d /dev/shm/swinv2-tests-XXXXXX) || return 1
    printf '#!/bin/sh\n' >"$scratch/probe"
    chmod +x "$scratch/probe"
    "$scratch/probe" 2>/dev/null || { rm -r "$scratch" && return 1; }
}
in_memory || scratch=$(mktemp -d "${TMPDIR:-/tmp}/swinv2-tests-XXXXXX")
# Hundreds of processes import the package, so compile it once.
unset PYTHONDONTWRITEBYTECODE
python -m compileall -q swinv2_train
# One more worker than cores, because many tests wait (but not the quick ones), and at most 8. A file stays with one worker because of its fixtures, and
# slow files come first (tests/conftest.py).
cores=$(env -u OMP_NUM_THREADS nproc)
read -r quota period 2>/dev/null </sys/fs/cgroup/cpu.max || quota=max
[ "$quota" = max ] || cores=$((quota / period < cores ? quota / period : cores))
workers=${SWINV2_TEST_WORKERS:-$((cores < 7 ? cores + extra : 8))}
code=0
python -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder --basetemp "$scratch/pytest" "$@" || code=$?
if [ "$code" = 0 ]; then
    rm -rf "$scratch" || true
else
    echo "the output of the tests is in $scratch" >&2
fi
exit "$code"
