#!/usr/bin/env bash
# The three stages on the built-in Shapes images, with a small MicroNet: no download but the
# packages, about two minutes on two cores. Results land in runs/demo/.
#   bash scripts/demo.sh
#   PYTHON=python3.12 bash scripts/demo.sh       with another interpreter
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh
prepare_venv requirements.txt torch torchvision numpy tqdm

runs=runs/demo
echo "== 1. train a small MicroNet (full precision)"
"$python" -u run_compound_scaling.py --dataset Shapes --grid 0.14 1 --phi 1 --epochs 6 \
    --augment none --batch-size 64 --channels-last --output $runs/scaling
echo "== 2. make it ternary and sparse (EC2T)"
"$python" -u run_quantization.py --model-dict $runs/scaling/best_model.pt --ini-c-divrs 0.3 \
    --lambda-max-divrs 0.15 --lr 1e-3 --lr2 1e-4 --epochs 3 --retrain-epochs 1 \
    --augment none --batch-size 64 --output $runs/quantization
echo "== 3. count what both cost"
for stage in scaling/best_model quantization/Ternary_best_acc; do
    "$python" -u run_scoring.py --t-model $runs/$stage.pt --eval --json $runs/${stage##*/}.json \
        > $runs/${stage##*/}.txt
done
"$python" -m scripts.compare "full precision" $runs/best_model.json "EC2T" \
    $runs/Ternary_best_acc.json
echo "layer by layer: $runs/Ternary_best_acc.txt"
