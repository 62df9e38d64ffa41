#!/usr/bin/env bash
# The paper's settings: one base model under one objective on UltraFeedback, with LPC and plain:
#
#     bash examples/paper/run.sh llama3-8b-instruct dpo FOLDER_OR_HUB_NAME [--flag value …]
#
# MODEL is mistral-7b, llama3-8b or llama3-8b-instruct, LOSS is dpo, ipo or simpo; then the Hugging Face model to start
# from, and flags of the training. Wants one node of 8 GPUs with 80 GB (TP 4 x DP 2), some 250 GB of disk for the two
# runs, and at first the Hub, or UltraFeedback in its own form as a file that DATA names.
# DRY_RUN=1 prints the commands that it would run.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
model=$1 loss=$2 hf=$3
shift 3
data=${DATA:-openbmb/UltraFeedback:train}
[ -e "$hf" ] && hf=$(realpath "$hf")
[ -e "$data" ] && data=$(realpath "$data")
cd "$(dirname "$0")/../.."
[ -e "examples/paper/$model.yaml" ] || { echo "error: no examples/paper/$model.yaml" >&2; exit 2; }
case $loss in
    dpo) of_loss=(--loss-type dpo --beta 0.1) ;;
    ipo) of_loss=(--loss-type ipo --beta 0.1 --no-ipo-length-average) ;; # Summed, as the paper's trainer does.
    simpo) of_loss=(--loss-type simpo --beta 2.0 --simpo-gamma 1.0) ;;
    *) echo "error: the loss is dpo, ipo or simpo, not $loss" >&2; exit 2 ;;
esac
say=()
[ -n "${DRY_RUN:-}" ] && say=(echo)
out=runs/paper/$model
options=(--config "examples/paper/$model.yaml" "${of_loss[@]}")
launch=("${say[@]}" .venv/bin/python -m megatron_lpc.launch --standalone --nproc-per-node 8 -m)
export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}"

"${say[@]}" bash tools/setup_venv.sh
[ -e runs/paper/data/held_out.jsonl ] || "${say[@]}" .venv/bin/python examples/paper/split.py \
    --input "$data" --output runs/paper/data
if [ ! -e "$out/base" ]; then
    "${say[@]}" .venv/bin/python tools/convert_hf.py import --hf "$hf" --output "$out/base"
fi
# The reference is the same for dpo and ipo; simpo has none.
if [ "$loss" != simpo ] && [ ! -e "$out/reference" ]; then
    "${launch[@]}" megatron_lpc.precompute_reference "${options[@]}" --tokenizer-model "$hf"
fi
for mode in lpc none; do
    run=$out/$loss-$mode
    "${launch[@]}" megatron_lpc.train "${options[@]}" --tokenizer-model "$hf" --latent-mode $mode --save "$run" \
        --load auto "$@"
    "${launch[@]}" megatron_lpc.evaluate --config "$run/config.yaml" --load "$run" --output "$run/report.json"
done
