#!/usr/bin/env bash
# From nothing to a result: set up, make preference pairs of two annotators who disagree, train plain DPO and DPO with
# LPC on two processes (tensor parallel size 2), and evaluate both on held-out pairs. The last table also has the
# accuracy under the codes that 8 labelled pairs of an annotator give (`support`); the report shows the codes
# themselves. Leaves everything under runs/.
set -euo pipefail
cd "$(dirname "$0")/.."
bash tools/setup_venv.sh
data=runs/recovery
run=runs/quickstart
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
launch=(.venv/bin/python -m megatron_lpc.launch --standalone --nproc-per-node 2 -m)
.venv/bin/python tools/make_preferences.py --output $data/data
.venv/bin/python tools/train_tokenizer.py --input $data/data/train.jsonl --output $data/tokenizer --vocab-size 400
for mode in plain lpc; do
    "${launch[@]}" megatron_lpc.train --config examples/recovery/$mode.yaml --tensor-model-parallel-size 2 \
        --eval-interval 50 --save $run/$mode --load auto
done
.venv/bin/python tools/plot_metrics.py plain=$run/plain lpc=$run/lpc --output $run/curves.png
.venv/bin/python tools/compare_runs.py plain=$run/plain lpc=$run/lpc --output $run/table.md
"${launch[@]}" megatron_lpc.evaluate --config $run/lpc/config.yaml --load $run/lpc
"${launch[@]}" megatron_lpc.evaluation.report --load $run/lpc --output $run/report
echo "Table: $run/table.md   Curves: $run/curves.png   Codes: $run/report/report.html"
