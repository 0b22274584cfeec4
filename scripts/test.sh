#!/usr/bin/env bash
# Lint and test everything, in a .venv that is made on the first call.
#   bash scripts/test.sh [pytest arguments]
#   PYTHON=python3.12 bash scripts/test.sh       with another interpreter
#   EFFICIENTCNNS_TEST_DATA=DIR bash scripts/test.sh    with released checkpoints and real images
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh
prepare_venv requirements-test.txt torch torchvision numpy tqdm pytest ruff matplotlib timm \
    efficientnet_pytorch onnx onnxscript onnxruntime

"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m pytest "$@"
