"""Plan a run: `python -m megatron_lpc.plan --config FILE.yaml --world-size N [--search] [--flag value …]`.

In one process and without a GPU: see docs/plan.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from megatron_lpc.command_line import reports_errors
from megatron_lpc.config import Config
from megatron_lpc.files import write_text
from megatron_lpc.plan.as_json import change_as_dict, plan_as_dict
from megatron_lpc.plan.fit import smallest_change
from megatron_lpc.plan.options import PlanOptions, parse
from megatron_lpc.plan.prediction import make_plan
from megatron_lpc.plan.report import print_change, print_layouts, print_plan
from megatron_lpc.plan.search import search
from megatron_lpc.terminal import wide_console


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Exits with 2 when the options cannot work, with 1 when nothing fits."""
    with reports_errors():
        config, options = parse(sys.argv[1:] if argv is None else argv)
        fits = _search(config, options) if options.search else _plan(config, options)
    if not fits:
        raise SystemExit(1)


def _plan(config: Config, options: PlanOptions) -> bool:
    plan = make_plan(config, options)
    change = None if plan.fits else smallest_change(plan)
    console = wide_console()
    print_plan(plan, console)
    if not plan.fits:
        print_change(change, console)
    _write(options, plan_as_dict(plan) | {"smallest_change": change_as_dict(change)})
    return plan.fits


def _search(config: Config, options: PlanOptions) -> bool:
    plans = search(config, options)
    print_layouts(plans, options, wide_console())
    _write(options, {"layouts": [plan_as_dict(plan) for plan in plans]})
    return bool(plans)


def _write(options: PlanOptions, content: dict[str, Any]) -> None:
    if options.output is not None:
        write_text(options.output, json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
