#!/usr/bin/env bash
# Do the codes find annotators who disagree? Trains plain DPO, the control, and LPC with the default options, with the
# paper's and by exact inference, on 2, 3 and 4 annotators, with three seeds each, and writes runs/recovery/table.md:
#
#     bash examples/recovery/run.sh [--jobs N]
#
# It can be stopped and started at will. `examples/recovery/study.yaml` has the options of each row.
set -euo pipefail
cd "$(dirname "$0")/../.."
bash tools/setup_venv.sh
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
.venv/bin/python -m megatron_lpc.study examples/recovery/study.yaml --output runs/recovery "$@"
