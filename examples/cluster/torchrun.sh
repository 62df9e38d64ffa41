#!/usr/bin/env bash
# One agent per node, by hand or from your own launcher. On every node, with the same address and port of the first:
#
#     NODES=8 NODE_RANK=0 MASTER_ADDR=10.0.0.1 \
#         bash examples/cluster/torchrun.sh examples/cluster/llama3-70b.yaml [--flag value …]
#
# On SIGTERM the run saves a checkpoint after the step that runs, and exits. torchrun (of torch 2.12 and later) waits
# TORCH_ELASTIC_SHUTDOWN_TIMEOUT seconds for that before it kills its workers; older ones wait 30 s, too short for a
# large model: there let the run end by itself, with --exit-duration-in-mins.
set -euo pipefail
: "${NODES:=1}" "${NODE_RANK:=0}" "${GPUS_PER_NODE:=8}" "${MASTER_ADDR:=127.0.0.1}" "${MASTER_PORT:=29500}"
config=$1
shift
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}"
# Before Blackwell, tensor parallel collectives overlap with compute only when kernels start in the order in which they
# were enqueued.
export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}"
exec torchrun --nnodes "$NODES" --node-rank "$NODE_RANK" --nproc-per-node "$GPUS_PER_NODE" \
    --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" -m megatron_lpc.train --config "$config" "$@"
