#!/usr/bin/env bash
# Videos after demo.sh: write videos of real digits that move over real photographs, pack them, train a small SwinV2 to
# tell the direction, from the demo's weights of images, from random ones, and with a single frame, and compare them on
# held-out videos. Runs demo.sh first if its weights are missing. Rerun it to resume where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -d outputs/demo/supervised/checkpoints ] || scripts/demo.sh
source scripts/env.sh

videos=demo-data/motions
echo "== videos =="
[ -d $videos ] || { python scripts/moving_digits.py $videos.partial && mv $videos.partial $videos; }
echo "== shards =="
swinv2-data pack $videos/train demo-data/motions-train --video --classes
swinv2-data pack $videos/heldout demo-data/motions-eval --video --classes \
    --class-names demo-data/motions-train/train.dataset.json
echo "== training =="
swinv2-pipeline pipeline=video_demo
echo "== result =="
python scripts/video_result.py outputs/video_demo
