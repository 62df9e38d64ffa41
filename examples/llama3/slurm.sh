#!/usr/bin/env bash
#SBATCH --job-name=megatron-lpc
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --signal=TERM@300
# sbatch examples/llama3/slurm.sh examples/llama3/70b.yaml [--flag value …]
#
# Five minutes before its end the job gets SIGTERM: the run saves a checkpoint and exits. `load: auto` in the
# configuration resumes from it when the job is submitted again.
set -euo pipefail
export NODES=$SLURM_NNODES MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR
srun --kill-on-bad-exit=1 bash -c 'NODE_RANK=$SLURM_NODEID exec bash examples/llama3/torchrun.sh "$@"' launch "$@"
