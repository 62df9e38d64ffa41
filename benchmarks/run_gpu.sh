#!/usr/bin/env bash
# All that one GPU can tell: the kernels' tests, what the compiler makes of them, times and memory beside other
# libraries; and, where preference pairs are given, training beside TRL.
#
#     bash benchmarks/run_gpu.sh [PAIRS]
#
# Results go to benchmarks/results/GPU. PYTHON=... takes that Python, with the project installed; without it .venv is
# made.
set -euo pipefail
pairs=""
if [ $# -gt 0 ]; then
    [ -r "$1" ] || { echo "run_gpu.sh: cannot read $1" >&2; exit 2; }
    pairs="$(realpath "$1")"
fi
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
    bash tools/setup_venv.sh
    PYTHON=.venv/bin/python
    for package in liger-kernel quack-kernels; do
        "$PYTHON" -m pip install --quiet "$package" || echo "$package does not install; continuing without it"
    done
fi
gpu="$("$PYTHON" -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-"))')"
results="benchmarks/results/$gpu"
mkdir -p "$results"

"$PYTHON" -m pytest tests/kernels -m gpu 2>&1 | tee "$results/tests.txt"
"$PYTHON" kernels/inspect_kernels.py --markdown | tee "$results/inspect.md"

pair_logps() {
    local name="$1"
    shift
    "$PYTHON" -m benchmarks.kernels pair_logps --chunk-size 4096 --output "$results/$name" "$@"
}
pair_logps models --model llama-3-8b llama-3-70b qwen-3-8b gemma-2-9b --latents 1 2 4
pair_logps tokens --model llama-3-8b --tokens 1024 2048 4096 16384 32768
pair_logps masked --model llama-3-8b --masked 0 0.3 0.5 0.7
pair_logps shards --model llama-3-70b --tp 1 2 4 8
pair_logps scoring --model llama-3-8b llama-3-70b qwen-3-8b gemma-2-9b --direction scoring \
    --providers pytorch recompute compile linear_cross_entropy megatron
"$PYTHON" -m benchmarks.kernels gumbel_mix --pairs 16 256 --codes 64 1024 --hidden-size 4096 8192 \
    --output "$results/gumbel_mix"

[ -n "$pairs" ] || exit 0
train() {
    local name="$1"
    shift
    "$PYTHON" -m benchmarks.training --data "$pairs" --device cuda --pack-to 8192 --output "$results/$name" "$@"
}
train train-llama-3.2-1b --shape llama-3.2-1b
# The optimizer's state of all 32 layers takes more than one GPU.
train train-llama-3-8b --shape llama-3-8b --num-layers 8
if "$PYTHON" -c 'import liger_kernel' 2>/dev/null; then
    train train-llama-3.2-1b-liger --shape llama-3.2-1b --liger --providers trl shared-packed-lpc
fi
