"""Speed and memory of tokenization and sampling: `python -m benchmarks.data --help`."""
