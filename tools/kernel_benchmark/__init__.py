"""Parts of `tools/benchmark_kernels.py`: what is measured, how, and how it is written down."""
