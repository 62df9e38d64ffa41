"""Train and evaluate in one process, and leave the report, the metrics and no checkpoint.

Started by `benchmarks.codes`; flags are those of `megatron_lpc.train`, `--support-...` of `megatron_lpc.evaluate`, and
`--report FILE.json`.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_lpc import evaluate
from megatron_lpc.command_line import ArgumentParser, reports_errors
from megatron_lpc.config import parse_args
from megatron_lpc.train import train


def main(argv: Sequence[str]) -> None:
    """Command line. Exits with 2 when options or data cannot work, with 1 when the training diverged."""
    with reports_errors():
        parser = ArgumentParser(allow_abbrev=False)
        parser.add_argument("--report", required=True)
        for name in ("data", "pairs", "seed"):
            parser.add_argument(f"--support-{name}", dest=name)
        known, flags = parser.parse_known_args(argv)
        config = parse_args(flags)
        assert config.checkpoint.save is not None
        save = Path(config.checkpoint.save)
        train(config)
    given = {name: getattr(known, name) for name in ("data", "pairs", "seed")}
    support = [part for name, value in given.items() if value is not None for part in (f"--support-{name}", value)]
    evaluate.main(["--config", str(save / "config.yaml"), "--output", known.report, *support])
    for checkpoint in save.glob("iter_*"):
        shutil.rmtree(checkpoint)
    (save / "latest_checkpointed_iteration.txt").unlink()


if __name__ == "__main__":
    main(sys.argv[1:])
