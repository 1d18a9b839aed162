#!/usr/bin/env bash
# Run the whole test suite (lint first). Arguments go to pytest: scripts/test.sh tests/models -k attention
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/env.sh

# One thread per process: the tests start several, and OpenMP threads that wait for each other cost more than they give.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Where no GPU is visible, DeepSpeed need not look for one.
python -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' || export DS_ACCELERATOR=cpu

ruff check .
ruff format --check .
# Checkpoints are forced to the disk, thousands of them here. In memory, where it has 8 GiB and lets files be executed,
# that takes no time.
in_memory() {
    [ "$(df --output=avail -k /dev/shm 2>/dev/null | tail -n 1)" -gt $((8 << 20)) ] 2>/dev/null || return 1
    scratch=$(mktemp -d /dev/shm/swinv2-tests-XXXXXX) || return 1
    printf '#!/bin/sh\n' >"$scratch/probe"
    chmod +x "$scratch/probe"
    "$scratch/probe" 2>/dev/null || { rm -r "$scratch" && return 1; }
}
in_memory || scratch=$(mktemp -d "${TMPDIR:-/tmp}/swinv2-tests-XXXXXX")
trap 'rm -rf "$scratch"' EXIT
# One more at a time than there are cores: many tests wait for something. A file stays with one worker, for its fixtures'
# sake, and the slow ones come first (tests/conftest.py).
cores=$(env -u OMP_NUM_THREADS nproc)
python -m pytest -n "${SWINV2_TEST_WORKERS:-$((cores < 7 ? cores + 1 : 8))}" --dist loadfile --no-loadscope-reorder \
    --basetemp "$scratch/pytest" "$@"
