#!/usr/bin/env bash
# CIFAR-100 as in the thesis: MicroNet d=1.4, w=1.2, phi=3.5 (81.5 %), EC2T (80.1 %, 90 % zeros),
# score. A GPU and about a day; call it again to go on where it stopped.
#   bash scripts/reproduce_cifar100.sh [DATA_DIR]     (default: downloads to data/downloads)
set -euo pipefail
cd "$(dirname "$0")/.."
data=(${1:+--data-path "$1"})
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
dense=c100_micronet_d14_w12_phi35.pt ternary=c100_micronet_ec2t_spars90.pt

"$python" -u run_compound_scaling.py --epochs 250 --batch-size 128 --grid 1.4 1.2 --phi 3.5 \
    --dataset CIFAR100 --image-size 32 "${data[@]}"
cp model_compound_scaling/saved_models/best_model.pt model_quantization/trained_fp_models/$dense

"$python" -u run_quantization.py --model-dict $dense --batch-size 128 --epochs 20 \
    --retrain-epochs 20 --ini-c-divrs 0.45 --lambda-max-divrs 0.15 --model cifar-micronet \
    --dw-multps 1.4 1.2 --phi 3.5 --dataset CIFAR100 "${data[@]}"
cp model_quantization/saved_models/Ternary_best_acc.pt model_scoring/trained_t_models/$ternary

"$python" -u run_scoring.py --t-model $ternary --model cifar_micronet --dataset CIFAR100 --eval \
    --halfprecision "${data[@]}"
