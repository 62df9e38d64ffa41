#!/usr/bin/env bash
# One agent per node, by hand or from your own launcher. On every node, with the same address and port of the first:
#
#     NODES=8 NODE_RANK=0 MASTER_ADDR=10.0.0.1 \
#         bash examples/llama3/torchrun.sh examples/llama3/70b.yaml [--flag value …]
set -euo pipefail
: "${NODES:=1}" "${NODE_RANK:=0}" "${GPUS_PER_NODE:=8}" "${MASTER_ADDR:=127.0.0.1}" "${MASTER_PORT:=29500}"
config=$1
shift
# Tensor parallel collectives overlap with compute only when kernels start in the order in which they were enqueued.
export CUDA_DEVICE_MAX_CONNECTIONS=1
exec torchrun --nnodes "$NODES" --node-rank "$NODE_RANK" --nproc-per-node "$GPUS_PER_NODE" \
    --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" -m megatron_lpc.train --config "$config" "$@"
