#!/usr/bin/env bash
# From nothing to a trained model: create the environment, pack real images into shards, pretrain a small SwinV2 on them with
# SimMIM, train it on many labels, fine-tune it on few at a larger size, do the same without pretraining, and print the
# results. Takes about 15 minutes on two free CPU cores. Rerun it to resume where it stopped; it does nothing once it is finished.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/env.sh

# Create DEST atomically.
make_images() {
    [ -d "$2" ] || { python "$1" "$2.partial" && mv "$2.partial" "$2"; }
}

echo "== images =="
make_images scripts/photos.py demo-data/photos
make_images scripts/digits.py demo-data/digits
echo "== shards =="
swinv2-data pack demo-data/photos/train demo-data/train
swinv2-data pack demo-data/photos/heldout demo-data/eval
swinv2-data pack demo-data/digits/pretrain demo-data/digits-pretrain --classes
swinv2-data pack demo-data/digits/train demo-data/digits-train --classes
swinv2-data pack demo-data/digits/heldout demo-data/digits-eval --classes
echo "== training =="
swinv2-pipeline pipeline=demo
echo "== result =="
python scripts/demo_result.py outputs/demo
