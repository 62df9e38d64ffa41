"""Kernels of megatron-lpc; usable without megatron-core."""
