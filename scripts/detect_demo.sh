#!/usr/bin/env bash
# Detection after demo.sh: write scenes of real digits on real photographs with boxes and masks, pack them, train a small
# Mask R-CNN on them from the demo's weights and from random ones, and compare both on held-out scenes. Runs demo.sh first if
# its weights are missing. Rerun it to resume where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -d outputs/demo/supervised/checkpoints ] || scripts/demo.sh
source scripts/env.sh

scenes=demo-data/objects
echo "== scenes =="
[ -d $scenes ] || { python scripts/detect_scenes.py $scenes.partial && mv $scenes.partial $scenes; }
echo "== shards =="
swinv2-data pack $scenes/train/images demo-data/objects-train --coco $scenes/train/objects.json
swinv2-data pack $scenes/heldout/images demo-data/objects-eval --coco $scenes/heldout/objects.json
echo "== training =="
swinv2-pipeline pipeline=detect_demo
echo "== result =="
python scripts/detect_result.py outputs/detect_demo
