#!/usr/bin/env bash
# An accuracy in, the smallest network out: stage 1 to a little more than the accuracy, stage 2 to
# the smallest ternary network that still has it, stage 3 for its files and the report.
#   bash scripts/find_network.sh --accuracy 90 --dataset Shapes
#   bash scripts/find_network.sh --accuracy 80 --dataset CIFAR100 --output runs/c100 \
#       --scaling --grid 1.4 1.2 --epochs 250 --batch-size 128 --quantization --ini-c-divrs 0.45
# The same line again goes on where it stopped and trains nothing twice.
#   --accuracy A         top-1 in percent that the network must have
#   --margin M           stage 1 trains to A + M (default: 1.5)
#   --objective O        what smallest means: params, ops, score (default) or bytes
#   --output DIR         results (default: runs/found)
#   --scaling FLAGS      the flags that follow are stage 1's
#   --quantization FLAGS the flags that follow are stage 2's
# All other flags go to stages 1 and 2, as --dataset and --holdout; --data-path, --workers, --cuda
# and --no-cuda to stage 3 too. LAUNCH="torchrun --no-python --nproc_per_node 4" or LAUNCH=srun
# starts a process a device in stages 1 and 2. Exit codes are those of the stages; 8 where the
# accuracy is not reached, with the best network kept.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)  # paths on the command line are the caller's
python=${PYTHON:-$([ -x "$root/.venv/bin/python" ] && echo "$root/.venv/bin/python" || echo python3)}

answer() { PYTHONPATH=$root "$python" -m scripts.answer "$@"; }
usage() { echo "find_network.sh: error: $1" >&2; exit 2; }
accuracy='' margin=1.5 objective=score output=runs/found
both=() scoring=() scaling=() quantization=() part=both

while [ $# -gt 0 ]; do
    case $part:$1 in
        *:--scaling) part=scaling ;;
        *:--quantization) part=quantization ;;
        both:--accuracy | both:--margin | both:--objective | both:--output)
            [ $# -gt 1 ] || usage "$1 needs a value"
            declare "${1#--}=$2"
            shift ;;
        both:--data-path | both:--workers)
            [ $# -gt 1 ] || usage "$1 needs a value"
            both+=("$1" "$2") scoring+=("$1" "$2")
            shift ;;
        both:--cuda | both:--no-cuda) both+=("$1") scoring+=("$1") ;;
        both:--help | both:-h) sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; exit 0 ;;
        both:*) both+=("$1") ;;
        scaling:*) scaling+=("$1") ;;
        quantization:*) quantization+=("$1") ;;
    esac
    shift
done
goal=$(answer goal "$accuracy" "$margin") || exit 2

# run a stage; what it returned is in $code, and 8 (accuracy not reached) does not end this script
stage() {
    code=0
    "$@" || code=$?
    [ "$code" -eq 0 ] || [ "$code" -eq 8 ] || exit "$code"
}

scaling=(--target-accuracy "$goal" --output "$output/scaling" "${both[@]}" "${scaling[@]}")
quantization=(--model-dict "$output/full_precision.pt" --target-accuracy "$accuracy"
    --objective "$objective" --output "$output/quantization" "${both[@]}" "${quantization[@]}")
answer check run_compound_scaling "${scaling[@]}"
answer check run_quantization "${quantization[@]}"

started=$SECONDS
trap '[ ! -d "$output" ] || echo $((SECONDS - started)) >> "$output/seconds.txt"' EXIT
stage ${LAUNCH:-} "$python" -u "$root/run_compound_scaling.py" "${scaling[@]}"
cp "$output/scaling/best_model.pt" "$output/full_precision.pt"
stage ${LAUNCH:-} "$python" -u "$root/run_quantization.py" "${quantization[@]}"
[ -f "$output/quantization/Ternary_best_acc.pt" ] || exit "$code"
cp "$output/quantization/Ternary_best_acc.pt" "$output/network.pt"
reached=$code report=()
if "$python" -c 'import matplotlib' 2>/dev/null; then
    report=(--report "$output/report.html" --runs "$output/scaling" "$output/quantization"
        --question "The smallest network ($objective) with $accuracy % top-1")
else
    echo "no report.html: pip install -r requirements-report.txt" >&2
fi
stage "$python" -u "$root/run_scoring.py" --t-model "$output/full_precision.pt" --eval "${scoring[@]}" \
    --json "$output/full_precision.json" > "$output/full_precision.txt"
stage "$python" -u "$root/run_scoring.py" --t-model "$output/network.pt" --eval "${scoring[@]}" \
    --json "$output/network.json" --export "$output/network.ec2t" \
    --thin "$output/network_thin.pt" "${report[@]}" > "$output/network.txt"
answer show "$output" "$accuracy" "$((SECONDS - started))"
exit "$reached"
