"""The results of an evaluation, as a table and as JSON."""

import json
from dataclasses import replace
from io import StringIO

from rich.console import Console

from megatron_lpc.evaluation.information import Information
from megatron_lpc.evaluation.results import Report, SupportReport, report_table, verdict_lines, write_report
from megatron_lpc.losses import CodeVerdict

SUPPORT = SupportReport(
    query_pairs=7,
    accuracy={"prior": 0.4, "support": 0.75, "support_exact": 0.875, "swapped": 0.25},
    groups={},
    left_out=["c"],
)
SUPPORT_HEADINGS = ["support", "support, exact", "swapped", "query pairs"]
INFORMATION = Information(bits=0.5, maximum=1.0, bias=0.01)
FULL = Report(pairs=9, metrics={"prior": {"rewards/accuracies": 0.5}}, information=INFORMATION, support=SUPPORT)
BARE = Report(pairs=3, metrics={"none": {"rewards/accuracies": 0.25}}, information=None, support=None)


def _lines(reports):
    console = Console(file=StringIO(), width=140)
    console.print(report_table(reports))
    return [
        [cell.strip() for cell in line.strip("┃│").replace("┃", "│").split("│")]
        for line in console.file.getvalue().splitlines()
    ]


def test_a_column_for_what_there_is_and_no_other():
    lines = _lines({"x": BARE})
    assert ["data", "pairs", "none"] in lines
    assert ["x", "3", "25.0%"] in lines


def test_cells_stand_under_their_heading():
    lines = _lines({"x": BARE, "y": FULL})
    assert ["data", "pairs", "none", "prior", *SUPPORT_HEADINGS, "bits", "at most", "by chance"] in lines
    assert ["x", "3", "25.0%", "", "", "", "", "", "", "", ""] in lines
    assert ["y", "9", "", "50.0%", "75.0%", "87.5%", "25.0%", "7", "0.500", "1.000", "0.010"] in lines


def test_verdict_is_a_cell_and_a_line_that_says_why():
    reports = {"x": BARE, "y": replace(FULL, verdict=CodeVerdict("partly collapsed", "KL 0.1 nats"))}
    assert [
        "y",
        "9",
        "",
        "50.0%",
        "partly collapsed",
        "75.0%",
        "87.5%",
        "25.0%",
        "7",
        "0.500",
        "1.000",
        "0.010",
    ] in _lines(reports)
    assert verdict_lines(reports) == ["codes on y: partly collapsed (KL 0.1 nats); support 75.0%, prior 40.0%"]
    assert verdict_lines({"z": replace(reports["y"], support=None)}) == ["codes on z: partly collapsed (KL 0.1 nats)"]


def test_json_holds_settings_and_reports(tmp_path):
    write_report(
        tmp_path / "new" / "r.json", {"checkpoint": "c"}, {"y": replace(FULL, verdict=CodeVerdict("active", "w"))}
    )
    content = json.loads((tmp_path / "new" / "r.json").read_text())
    assert content["checkpoint"] == "c"
    assert content["data"]["y"]["support"]["left_out"] == ["c"]
    assert content["data"]["y"]["verdict"] == {"state": "active", "why": "w"}
    assert content["data"]["y"]["information"] == {"bits": 0.5, "maximum": 1.0, "bias": 0.01}
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["r.json"]
