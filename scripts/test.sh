#!/usr/bin/env bash
# Run lint and the whole test suite. Arguments go to pytest: scripts/test.sh tests/models -k attention
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/env.sh

# One thread per process: the tests start several, and OpenMP threads that wait for each other cost more than they give.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Where no GPU is visible, DeepSpeed need not look for one.
python -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' || export DS_ACCELERATOR=cpu

ruff check .
ruff format --check .
# Checkpoints are forced to the disk, thousands of them here. In memory that takes no time: there they go where 16 GiB of
# it are free, in the container's limit as well, and files there can be executed.
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
# Hundreds of processes import the package: let them find it compiled.
unset PYTHONDONTWRITEBYTECODE
python -m compileall -q swinv2_train
# One more at a time than there are cores, at most 8: many tests wait for something. A file stays with one worker, for its
# fixtures' sake, and the slow ones come first (tests/conftest.py).
cores=$(env -u OMP_NUM_THREADS nproc)
read -r quota period 2>/dev/null </sys/fs/cgroup/cpu.max || quota=max
[ "$quota" = max ] || cores=$((quota / period < cores ? quota / period : cores))
workers=${SWINV2_TEST_WORKERS:-$((cores < 7 ? cores + 1 : 8))}
code=0
python -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder --basetemp "$scratch/pytest" "$@" || code=$?
if [ "$code" = 0 ]; then
    rm -rf "$scratch" || true
else
    echo "what the tests wrote is in $scratch" >&2
fi
exit "$code"
