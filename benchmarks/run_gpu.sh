#!/usr/bin/env bash
# All that one GPU can tell of the kernels: its tests, what the compiler makes of them, times and memory beside other libraries.
# Results go to benchmarks/results/GPU. PYTHON=... takes that Python, with the project installed; without it .venv is made.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
    bash tools/setup_venv.sh
    PYTHON=.venv/bin/python
    for package in liger-kernel quack-kernels; do
        "$PYTHON" -m pip install --quiet "$package" || echo "$package does not install; the benchmark goes on without it"
    done
fi
gpu="$("$PYTHON" -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-"))')"
results="benchmarks/results/$gpu"
mkdir -p "$results"

"$PYTHON" -m pytest tests/kernels -m gpu 2>&1 | tee "$results/tests.txt"
"$PYTHON" tools/inspect_kernels.py --markdown | tee "$results/inspect.md"

pair_logps() {
    local name="$1"
    shift
    "$PYTHON" tools/benchmark_kernels.py pair_logps --chunk-size 4096 --output "$results/$name" "$@"
}
pair_logps models --model llama-3-8b llama-3-70b qwen-3-8b gemma-2-9b --latents 1 2 4
pair_logps rows --model llama-3-8b --rows 1024 2048 4096 16384 32768
pair_logps masked --model llama-3-8b --masked 0 0.3 0.5 0.7
pair_logps shards --model llama-3-70b --tp 1 2 4 8
pair_logps scoring --model llama-3-8b llama-3-70b qwen-3-8b gemma-2-9b --direction scoring --providers pytorch recompute compile linear_cross_entropy megatron
"$PYTHON" tools/benchmark_kernels.py gumbel_mix --pairs 16 256 --codes 64 1024 --width 4096 8192 --output "$results/gumbel_mix"
