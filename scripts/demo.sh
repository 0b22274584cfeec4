#!/usr/bin/env bash
# An accuracy in, the smallest network out, on the built-in Shapes images: no download but the
# packages, two to three minutes on two cores. Results land in runs/demo/, and the page to look at.
#   bash scripts/demo.sh
#   PYTHON=python3.12 bash scripts/demo.sh       with another interpreter
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh
prepare_venv requirements-report.txt torch torchvision numpy tqdm matplotlib

PYTHON=$python bash scripts/find_network.sh --accuracy 92 --dataset Shapes --augment none \
    --batch-size 64 --output runs/demo \
    --scaling --grid 0.14 1 --phi 1 --epochs 6 --channels-last \
    --quantization --ini-c-divrs 0.3 --lambda-max-divrs 0.3 --lr 1e-3 --lr2 1e-4 --epochs 2 \
    --retrain-epochs 1 --trials 4 --trial-epochs 1
echo "the page: $PWD/runs/demo/report.html"
