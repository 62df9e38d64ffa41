#!/usr/bin/env bash
# Can votes of single people on debates that no one trained on be predicted, and do a few other votes of theirs help?
#
#     bash examples/convarg/run.sh UKPConvArg1-full-XML [--flag value …]
#
# The folder is that of github.com/UKPLab/acl2016-convincing-arguments. Variables:
#     OUT=runs/convarg        where everything goes; what is there is not made again
#     FOLDS="0 1 2 3"         topics are dealt out into four parts; each of these is the test once
#     SEEDS=1                 of weights and order, such as "1 2 3"
#     METHODS="continuous exact lpc", and embedding (P-DPO) and gaussian (VPL)
#     MODEL=                  Hugging Face folder of SmolLM2-135M-Instruct (../smollm2/README.md), for two rows more
# Flags go to every training. One process.
set -euo pipefail
corpus=$(realpath "$1")
shift
cd "$(dirname "$0")/../.."
bash tools/setup_venv.sh
python=.venv/bin/python
out=${OUT:-runs/convarg}
read -r -a seeds <<< "${SEEDS:-1}"
read -r -a names <<< "${METHODS:-continuous exact lpc}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# Each method trains a head on the backbone of plain DPO; they share its weights, its reference and the votes they see.
head=(--lr 0 --train-iters 80 --micro-batch-size 64 --global-batch-size 64 --eval-iters 4)
declare -A options=(
    [continuous]="--latent-mode continuous --codebook-size 4"
    [exact]="--latent-mode lpc --latent-inference exact --posterior-context 0 --codebook-size 4 --codebook-lr 0.05"
    [lpc]="--latent-mode lpc --latent-inference exact --posterior-context 63 --codebook-size 4 --codebook-lr 0.05"
    [embedding]="--latent-mode embedding"
    [gaussian]="--latent-mode gaussian --posterior-context 63 --kl-weight 0.001"
)
# Fewer and larger steps than by default give the same accuracies (fold 0, seed 1), and most of the time goes into them.
declare -A fits=([embedding]="--support-steps 20 --support-lr 0.0125")

train() {  # Folder of the run, flags.
    local run=$1
    shift
    [ -e "$run/done" ] && return
    $python -m megatron_lpc.train --config examples/convarg/small.yaml --save "$run" --load auto \
        --train-data "$data/train.jsonl" --valid-data "valid=$data/valid.jsonl" \
        --tokenizer-model "$data/tokenizer.model" --data-cache-path "$data/cache" "$@"
    touch "$run/done"
}

score() {  # Folder of the run, flags.
    local run=$1
    shift
    [ -e "$run/scores.json" ] || $python -m examples.convarg.score --config "$run/config.yaml" --load "$run" \
        --valid-data "all=$data/all.jsonl" --output "$run/scores.json" "$@"
}

# Name, types of workers, and what the logistic models see beside the surface of a text.
mixtures=("logistic 1" "mixture 8")
states="--states $out/states.json"
[ -z "${MODEL:-}" ] || mixtures+=("logistic-states 1 $states" "mixture-states 8 $states")
folders=()
for fold in ${FOLDS:-0 1 2 3}; do
    data=$out/fold-$fold
    folders+=("$data")
    [ -e "$data/all.jsonl" ] || $python -m examples.convarg.prepare --input "$corpus" --output "$data" --fold "$fold"
    [ -e "$data/tokenizer.model" ] ||
        $python tools/train_tokenizer.py --input "$data/train.jsonl" --output "$data/tokenizer" --vocab-size 1024
    [ -z "${MODEL:-}" ] || [ -e "$out/states.json" ] ||
        $python -m examples.convarg.features --arguments "$data/all.jsonl" --model "$MODEL" --output "$out/states.json"
    for mixture in "${mixtures[@]}"; do
        read -r name codes flags <<< "$mixture"
        # shellcheck disable=SC2086
        [ -e "$data/$name.json" ] ||
            $python -m examples.convarg.mixture --data "$data" --codes "$codes" --output "$data/$name.json" $flags
    done
    for seed in "${seeds[@]}"; do
        # The fresh weights from which plain DPO starts are the reference of all.
        train "$data/init-$seed" --seed "$seed" --train-iters 1 --lr 0 --eval-iters 1
        train "$data/plain-$seed" --seed "$seed" "$@"
        score "$data/plain-$seed"
        for name in "${names[@]}"; do
            read -r -a flags <<< "${options[$name]}"
            train "$data/$name-$seed" --seed "$seed" --pretrained-checkpoint "$data/plain-$seed" \
                --reference-load "$data/init-$seed" "${head[@]}" "${flags[@]}" "$@"
            read -r -a flags <<< "${fits[$name]:-}"
            score "$data/$name-$seed" "${flags[@]}"
        done
    done
done
scores=()
for mixture in "${mixtures[@]}"; do
    scores+=("${mixture%% *}=${mixture%% *}.json")
done
for name in plain "${names[@]}"; do
    scores+=("$name=$name-{seed}/scores.json")
done
$python -m examples.convarg.evaluate --data "${folders[@]}" --seeds "${seeds[@]}" --baseline plain \
    --scores "${scores[@]}" --output "$out/report.json" | tee "$out/table.md"
