"""Time and extra memory of the kernels beside those of other libraries: `python -m benchmarks.kernels --help`."""
