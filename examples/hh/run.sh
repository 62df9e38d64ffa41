#!/usr/bin/env bash
# Tokenizer, supervised stage, then DPO with and without LPC on a file of HH-RLHF
# (https://github.com/anthropics/hh-rlhf):
#
#     bash examples/hh/run.sh path/to/harmless-base/train.jsonl.gz
#
# Four processes, TP 2 x PP 2. On a CPU, give it some thousand pairs. Every tenth pair is held out.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: $0 FILE.jsonl.gz" >&2; exit 2; }
source=$(realpath "$1")
cd "$(dirname "$0")/../.."
bash tools/setup_venv.sh
mkdir -p runs/hh/data
zcat "$source" | awk 'NR % 10' | gzip -n > runs/hh/data/train.jsonl.gz
zcat "$source" | awk 'NR % 10 == 0' | gzip -n > runs/hh/data/held_out.jsonl.gz
.venv/bin/python tools/train_tokenizer.py --input runs/hh/data/train.jsonl.gz --output runs/hh/data/tokenizer \
    --vocab-size 2048 --model-type bpe
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
for stage in sft dpo-plain dpo-lpc; do
    .venv/bin/python -m megatron_lpc.launch --standalone --nproc-per-node 4 -m megatron_lpc.train --load auto \
        --config "examples/hh/$stage.yaml"
done
.venv/bin/python tools/plot_metrics.py plain=runs/hh/dpo-plain lpc=runs/hh/dpo-lpc --output runs/hh/curves.png
