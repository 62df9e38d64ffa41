"""Make a report of a trained codebook.

    torchrun … -m megatron_lpc.evaluation.report --load RUN [--data [NAME=]FILE …] --output DIR

All ranks score the pairs; rank 0 writes DIR/report.html and DIR/report.json.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from megatron_lpc.command_line import is_first_rank, reports_errors
from megatron_lpc.evaluation.report.findings import find
from megatron_lpc.evaluation.report.options import parse_report_command
from megatron_lpc.evaluation.report.page import HTML_FILE, write_report
from megatron_lpc.evaluation.report.prompt_map import check_installed
from megatron_lpc.evaluation.report.scored_pairs import score_for_report


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Exits with 2 when the options or the data cannot work; rank 0 says why."""
    with reports_errors():
        config, support, options = parse_report_command(sys.argv[1:] if argv is None else argv)
        check_installed(options.map)
        scored = score_for_report(config, support, options)
        if not is_first_rank():
            return
        findings = find(scored, options, support.data)
        write_report(findings, options.output)
    print(f"codes: {findings.verdict.state} ({findings.verdict.why})")
    print(f"wrote {options.output / HTML_FILE}")


if __name__ == "__main__":
    main()
