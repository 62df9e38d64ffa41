#!/usr/bin/env bash
# Do the codes find two annotators who disagree? Trains plain DPO, the control, LPC, and LPC with one option changed at
# a time, with three seeds each, on one core of a CPU, and writes the table of README.md to runs/recovery/table.md:
#
#     bash examples/recovery/run.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
bash tools/setup_venv.sh
root=runs/recovery
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
.venv/bin/python tools/make_preferences.py --output $root/data
.venv/bin/python tools/train_tokenizer.py --input $root/data/train.jsonl --output $root/tokenizer --vocab-size 400

# The latent of an annotator comes from 8 pairs of the validation file, agreeing and disagreeing as they come. It is
# evaluated on the test files.
support_flags="--support-data $root/data/valid.jsonl --support-pairs 8 --support-seed"

repeat() { # NAME CONFIG [--flag value …]
    for seed in 1 2 3; do
        out=$root/$1/seed$seed
        .venv/bin/python -m megatron_lpc.train --config "examples/recovery/$2.yaml" --seed $seed --log-interval 25 \
            --save "$out" "${@:3}"
        [ "$2" = lpc ] && support="$support_flags $seed" || support=
        # shellcheck disable=SC2086
        .venv/bin/python -m megatron_lpc.evaluate --config "$out/config.yaml" --output "$out/report.json" $support
    done
}

repeat plain plain
repeat continuous plain --latent-mode continuous --codebook-size 8 --codebook-init-std 0.5 \
    --posterior-input difference --latent-lr 0.01
repeat lpc lpc
repeat posterior_input=concat lpc --posterior-input concat
repeat posterior_input=bilinear lpc --posterior-input bilinear
repeat codebook_init_std=0.02 lpc --codebook-init-std 0.02
repeat latent_lr=lr lpc --latent-lr none
repeat prior_mix_final=1 lpc --prior-mix-final 1
repeat kl_weight=1 lpc --kl-weight 1
repeat defaults lpc --posterior-input concat --codebook-init-std 0.02 --latent-lr none --prior-mix-final 1
.venv/bin/python examples/recovery/table.py $root plain continuous lpc posterior_input={concat,bilinear} \
    codebook_init_std=0.02 latent_lr=lr prior_mix_final=1 kl_weight=1 defaults | tee $root/table.md
