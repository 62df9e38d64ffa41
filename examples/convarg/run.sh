#!/usr/bin/env bash
# Can votes of single people on debates that no one trained on be predicted, and do a few other votes of theirs help?
#
#     bash examples/convarg/run.sh UKPConvArg1-full-XML [--flag value …]
#
# The folder is that of github.com/UKPLab/acl2016-convincing-arguments. Variables:
#     OUT=runs/convarg    where everything goes
#     FOLDS=4 FOLD=0      topics are dealt out into FOLDS parts; part FOLD is for the test
#     SEED=1              of weights and order
# Flags go to every training. One process.
set -euo pipefail
corpus=$(realpath "$1")
shift
cd "$(dirname "$0")/../.."
bash tools/setup_venv.sh
python=.venv/bin/python
out=${OUT:-runs/convarg}
seed=${SEED:-1}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

$python -m examples.convarg.prepare --input "$corpus" --output "$out/data" --folds "${FOLDS:-4}" --fold "${FOLD:-0}"
[ -e "$out/tokenizer.model" ] ||
    $python tools/train_tokenizer.py --input "$out/data/train.jsonl" --output "$out/tokenizer" --vocab-size 1024

# Name and options of each method.
methods=(
    "plain --latent-mode none"
    "continuous --latent-mode continuous --codebook-size 8"
    "amortized --latent-mode lpc --latent-inference amortized --posterior-context 0 --codebook-size 8"
    "exact --latent-mode lpc --latent-inference exact --posterior-context 0 --codebook-size 8"
    "episodes --latent-mode lpc --latent-inference exact --posterior-context 7 --codebook-size 8"
)
scores=()
for method in "${methods[@]}"; do
    read -r -a words <<< "$method"
    name=${words[0]}-$seed
    run=$out/$name
    scores+=("${words[0]}=$run/scores.json")
    [ -e "$run/scores.json" ] && continue
    $python -m megatron_lpc.train --config examples/convarg/small.yaml --save "$run" --seed "$seed" \
        --train-data "$out/data/train.jsonl" --valid-data "valid=$out/data/valid.jsonl" \
        --tokenizer-model "$out/tokenizer.model" --data-cache-path "$out/cache" --load auto "${words[@]:1}" "$@"
    $python -m examples.convarg.score --config "$run/config.yaml" --load "$run" \
        --valid-data "all=$out/data/all.jsonl" --output "$run/scores.json"
done
$python -m examples.convarg.evaluate --data "$out/data" --scores "${scores[@]}" --baseline plain \
    --output "$out/report-$seed.json" | tee "$out/table-$seed.md"
