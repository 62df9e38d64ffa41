#!/usr/bin/env bash
#SBATCH --job-name=megatron-lpc
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --signal=TERM@660
# sbatch examples/cluster/slurm.sh examples/cluster/llama3-70b.yaml [--flag value …]
#
# Eleven minutes before its end the job gets SIGTERM: the run saves a checkpoint and exits. torchrun.sh gives it ten;
# raise both numbers together. SLURM then calls the job failed, as torchrun does of any run that gets a signal.
# `load: auto` in the configuration resumes from the checkpoint when the job is submitted again.
set -euo pipefail
export NODES=$SLURM_NNODES MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR
srun --kill-on-bad-exit=1 bash -c 'NODE_RANK=$SLURM_NODEID exec bash examples/cluster/torchrun.sh "$@"' launch "$@"
