#!/usr/bin/env bash
# From nothing to a pretrained model: make the environment, pack real photographs into shards, pretrain a small SwinV2
# with SimMIM on them, and say what came out. A few minutes on two CPU cores. Run it again and it goes on or is done.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/env.sh

echo "== photographs =="
[ -d demo-data/photos ] || { python scripts/photos.py demo-data/photos.partial && mv demo-data/photos.partial demo-data/photos; }
echo "== shards =="
swinv2-data pack demo-data/photos/train demo-data/train
swinv2-data pack demo-data/photos/heldout demo-data/eval
echo "== pretraining =="
swinv2-train +experiment=simmim_demo
echo "== result =="
python scripts/demo_result.py outputs/simmim_demo
