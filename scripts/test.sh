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
# Two at a time: many tests wait for processes to start. A file stays with one worker, for its fixtures' sake.
python -m pytest -n "${SWINV2_TEST_WORKERS:-2}" --dist loadfile "$@"
