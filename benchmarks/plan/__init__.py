"""Peaks of memory that `megatron_lpc.plan` predicts, beside those of runs on a CPU."""
