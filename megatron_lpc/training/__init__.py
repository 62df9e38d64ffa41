"""One run: its parts, the pipeline passes, the optimizer, checkpoints, and what is watched."""
