"""Training speed and memory of this project and of TRL's DPOTrainer, side by side: `python -m benchmarks.training --help`."""
