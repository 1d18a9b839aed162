#!/usr/bin/env bash
# All GPU checks and benchmarks in one call, for a machine with an NVIDIA GPU. Results go to scripts/bench/results/.
# Uses the Python on the path unless SWINV2_PYTHON is set; needs no network if the packages are installed.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${SWINV2_PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

"$python" -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "scripts/gpu.sh: no CUDA device is visible")'
"$python" -m pytest -m gpu -q tests
name=$("$python" -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-").lower())')
"$python" scripts/bench/train_step.py --out "scripts/bench/results/train-step-$name.json"
for recipe in ade20k_tiny_512 k400_tiny; do
    "$python" scripts/bench/recipe_step.py --experiment $recipe --out "scripts/bench/results/recipe-step-$recipe-$name.json"
done
"$python" scripts/bench/detection_step.py --out "scripts/bench/results/detection-step-$name.json"
"$python" scripts/bench/checkpoint.py --out "scripts/bench/results/checkpoint-$name.json"
