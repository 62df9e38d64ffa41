"""Plan a run: `python -m megatron_lpc.plan --config FILE.yaml --world-size N [--flag value …]`.

In one process and without a GPU: see docs/plan.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from megatron_lpc.command_line import reports_errors
from megatron_lpc.files import write_text
from megatron_lpc.plan.options import parse
from megatron_lpc.plan.prediction import make_plan
from megatron_lpc.plan.report import plan_as_dict, print_plan
from megatron_lpc.terminal import wide_console


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Exits with 2 when the options cannot work, with 1 when the run does not fit."""
    with reports_errors():
        config, options = parse(sys.argv[1:] if argv is None else argv)
        plan = make_plan(config, options)
    print_plan(plan, wide_console())
    if options.output is not None:
        write_text(options.output, json.dumps(plan_as_dict(plan), indent=2) + "\n")
    if not plan.fits:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
