#!/usr/bin/env bash
# Semantic segmentation after demo.sh: write scenes of real digits on real photographs with a class for every pixel, pack
# them, train a small segmenter on them from the demo's weights and from random ones, and compare both on held-out scenes
# with a constant guess. Runs demo.sh first if its weights are missing. Rerun it to resume where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -d outputs/demo/supervised/checkpoints ] || scripts/demo.sh
source scripts/env.sh

scenes=demo-data/scenes
echo "== scenes =="
[ -d $scenes ] || { python scripts/scenes.py $scenes.partial && mv $scenes.partial $scenes; }
echo "== shards =="
labels=(--classes-file "$scenes/classes.txt" --ignore 255)
swinv2-data pack $scenes/train/images demo-data/scenes-train --labels $scenes/train/labels "${labels[@]}"
swinv2-data pack $scenes/heldout/images demo-data/scenes-eval --labels $scenes/heldout/labels "${labels[@]}"
echo "== training =="
swinv2-pipeline pipeline=segment_demo
echo "== result =="
python scripts/segment_result.py outputs/segment_demo
