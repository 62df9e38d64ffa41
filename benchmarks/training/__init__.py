"""Speed and memory of training, beside TRL's DPOTrainer: `python -m benchmarks.training --help`."""
