#!/usr/bin/env bash
# ImageNet as in the thesis: EfficientNet-B1 (78.4 %), EC2T of expand, project and head, then ECP
# of squeeze-and-excitation and classifier (75.1 %, 61 % zeros), score.
#   bash scripts/reproduce_imagenet.sh IMAGENET_DIR EFFICIENTNET_B1.pt
# IMAGENET_DIR holds train/ and val/ with one folder per class; the weights may have lukemelas',
# torchvision's or timm's keys. Call it again to go on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -ne 2 ]; then
    echo "usage: bash scripts/reproduce_imagenet.sh IMAGENET_DIR EFFICIENTNET_B1.pt" >&2
    exit 2
fi
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
common=(--dataset ImageNet --data-path "$1" --val-batch-size 256 --model efficientnet-b1)
ec2t=model_quantization/saved_models ecp=$ec2t/ecp
first=B1_ternary_exp_proj_head.pt final=efficientnet_b1_ec2t_ecp_spars61.pt

cp "$2" model_quantization/trained_fp_models/efficientnet_b1.pt
"$python" -u run_quantization.py "${common[@]}" --batch-size 128 --ini-c-divrs 0.2 \
    --lambda-max-divrs 0.125 --model-dict efficientnet_b1.pt --image-size 224 --epochs 20 \
    --retrain-epochs 15
cp $ec2t/Ternary_best_acc.pt model_quantization/trained_fp_models/$first

# pruning keeps full-precision values, so both strengths may be larger
"$python" -u run_quantization.py "${common[@]}" --batch-size 128 --ini-c-divrs 0.25 \
    --lambda-max-divrs 0.15 --model-dict $first --image-size 224 --epochs 10 --retrain-epochs 0 \
    --do-prune --output $ecp
cp $ecp/Ternary_best_acc.pt model_scoring/trained_t_models/$final

"$python" -u run_scoring.py "${common[@]}" --image-size 256 --t-model $final \
    --prune-threshold 0.01 --eval --halfprecision
