"""What a study would run, and when a run counts as finished."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_lpc.command_line import UserError
from megatron_lpc.config import Config
from megatron_lpc.study.plan import plan_runs
from megatron_lpc.study.planned_run import PlannedRun
from megatron_lpc.study.rows import named_or_beginning
from megatron_lpc.study.study_file import DataSet, read_study

ROOT = Path(__file__).parents[2]
STUDIES = [path for path in sorted((ROOT / "examples").rglob("*.yaml")) if "seeds" in yaml.safe_load(path.read_text())]
ROWS = ["base", "plain", "both", "codebook_size=2", "codebook_size=8", "kl_weight=0.0", "kl_weight=0.5"]

Plan = Callable[..., list[PlannedRun]]
Finish = Callable[..., None]


@pytest.mark.parametrize("file", STUDIES, ids=lambda path: str(path.relative_to(ROOT / "examples")))
def test_each_row_of_our_studies_is_a_valid_run(file: Path, tmp_path: Path) -> None:
    study = read_study(file)
    runs = plan_runs(study, tmp_path, data=list(study.data), seeds=[1])
    assert {run.row.name for run in runs} == set(study.rows)
    if all(data.rows == DataSet.rows for data in study.data.values()):
        assert len(runs) == len(study.data) * len(study.rows)


def test_there_are_studies() -> None:
    assert {path.parent.name for path in STUDIES} >= {"recovery", "smollm2"}


def test_runs_of_equal_options_are_one(planned: Plan, finish: Finish, tmp_path: Path) -> None:
    runs = planned()
    assert [run.row.name for run in runs] == ROWS
    assert len({run.folder for run in runs}) == len(ROWS) - 1
    by_row = {run.row.name: run for run in runs}
    assert by_row["codebook_size=8"].folder == by_row["base"].folder == tmp_path / "runs" / "two" / "base" / "seed1"
    finish(by_row["base"])
    assert by_row["codebook_size=8"].is_finished()
    assert not by_row["codebook_size=2"].is_finished()


def test_a_run_has_the_options_of_file_study_and_row(planned: Plan, tmp_path: Path) -> None:
    by_row = {run.row.name: run for run in planned(seeds=(5,))}
    configs = [by_row[row].config for row in ("base", "both", "plain")]
    assert all(config is not None for config in configs)
    base, both, plain = configs
    assert (base.latent.codebook_size, base.latent.kl_warmup_iters, base.model.hidden_size) == (8, 7, 64)
    assert base.data.train_data == [str(tmp_path / "data" / "two" / "train.jsonl")]
    assert (both.latent.gumbel_tau, both.training.latent_lr) == (2.0, 0.5)
    assert plain.latent.latent_mode == "none"
    command = by_row["base"].command
    assert command[-4:] == ("--seed", "5", "--save", str(by_row["base"].folder))
    support = ("--support-seed", "5", "--support-pairs", "4", "--support-data", f"{tmp_path}/data/two/valid.jsonl")
    assert set(support) <= set(command)
    assert not any("--support" in part for part in by_row["plain"].command), "a model without codes has no support"
    options = {"posterior_context": 0, "lr": "default", "valid_data": {"d": "x"}}
    assert planned(options=options, rows={"lpc": {}}, sweep=None)[0].config.training.lr == Config().training.lr != 2e-3


def test_a_set_of_data_may_have_options(planned: Plan) -> None:
    runs = planned(data={"two": {"options": {"max_length": 99}}})
    assert all(run.config is not None and run.config.data.max_length == 99 for run in runs)


def test_a_set_of_data_may_have_some_of_the_rows(planned: Plan) -> None:
    runs = planned(data={"two": {"rows": ["base", "codebook_size"]}})
    assert [run.row.name for run in runs] == ["base", "codebook_size=2", "codebook_size=8"]


def test_a_whole_name_means_no_other_that_begins_so() -> None:
    names = ["lpc", "lpc, exact", "paper"]
    assert named_or_beginning(names, ["lpc"]) == ["lpc"]
    assert named_or_beginning(names, ["p", "lpc,"]) == ["lpc, exact", "paper"]
    assert named_or_beginning(names, ["exact"]) == []


def test_a_row_may_be_evaluated_otherwise(planned: Plan) -> None:
    rows = {
        "several": {"support": {"pairs": [0, 8], "seed": 3}},
        "new": {"evaluate": {"valid_data": {"new": "{data}/new.jsonl"}}},
    }
    runs = {run.row.name: run for run in planned(rows=rows, sweep=None)}
    assert runs["several"].reports == {0: "report-0.json", 8: "report-8.json"}
    command = " ".join(runs["several"].command)
    assert "--support-seed 3 --support-pairs 0 8 " in command
    assert runs["new"].validation_sets == ["new"]
    assert runs["several"].validation_sets == ["d", "a"]
    (flags,) = (part for part in runs["new"].command if part.startswith("--evaluate="))
    assert flags.startswith("--evaluate=--valid-data new=/")
    assert runs["new"].folder != runs["several"].folder


def test_a_rule_runs_once_unless_it_asks_for_the_seed(planned: Plan, tmp_path: Path) -> None:
    rows = {"always": {"command": "a.py {data} {report}"}, "drawn": {"command": "'b c.py' {report} {seed}"}}
    runs = planned(seeds=(1, 2), rows=rows, sweep=None)
    assert len({run.folder for run in runs if run.row.name == "always"}) == 1
    first, second = (run for run in runs if run.row.name == "drawn")
    assert first.folder != second.folder
    assert second.command == ("b c.py", str(second.folder / "report.json"), "2")
    assert runs[0].command[1] == str(tmp_path / "data" / "two")


def test_other_options_make_a_run_unfinished(planned: Plan, finish: Finish) -> None:
    for run in planned():
        finish(run)

    def finished(**changes: Any) -> list[str]:
        return [run.row.name for run in planned(**changes) if run.is_finished()]

    assert finished() == ROWS
    base = {"latent_mode": "lpc", "posterior_context": 0, "codebook_size": 8, "kl_warmup_iters": 9}
    data = {"train_data": ["{data}/train.jsonl"], "valid_data": {"d": "{data}/test.jsonl", "a": "{data}/agree.jsonl"}}
    assert finished(options={**base, **data}) == ["plain", "kl_weight=0.0"], "idle options do not count"
    assert finished(support={"pairs": 5}) == ["plain"]
    assert finished(evaluate={"micro_batch_size": 4}) == []


def test_a_changed_rule_is_unfinished(planned: Plan, finish: Finish) -> None:
    finish(planned(rows={"rule": {"command": "a.py {report}"}}, sweep=None)[0])
    assert planned(rows={"rule": {"command": "a.py {report}"}}, sweep=None)[0].is_finished()
    assert not planned(rows={"rule": {"command": "a.py {report} -x"}}, sweep=None)[0].is_finished()
    assert not planned(rows={"rule": {}}, sweep=None)[0].is_finished()


def test_options_that_come_and_go_count_where_they_are_set(planned: Plan, finish: Finish) -> None:
    run = planned()[0]
    finish(run)
    file = run.folder / "options.json"
    kept = json.loads(file.read_text())
    training = kept["training"]
    training["options"]["gone"] = 3
    del training["options"]["gumbel_tau"]
    file.write_text(json.dumps(kept))
    assert run.is_finished(), "both are at their default"
    training["changed"].append("gone")
    file.write_text(json.dumps(kept))
    assert not run.is_finished()
    training["changed"].remove("gone")
    del training["options"]["codebook_size"]
    file.write_text(json.dumps(kept))
    assert not run.is_finished(), "the study sets it, and the run did not know it"


def test_what_a_run_would_refuse_is_refused_before_any(planned: Plan) -> None:
    message = r"study\.yaml: row 'hot': --gumbel-tau -1\.0: must be"
    with pytest.raises(UserError, match=message):
        planned(rows={"hot": {"gumbel_tau": -1.0}})
    with pytest.raises(UserError, match=r"row 'idle': --gumbel-tau = 2\.0: has no effect with --latent-mode none"):
        planned(rows={"idle": {"latent_mode": "none", "gumbel_tau": 2.0}})
    with pytest.raises(UserError, match="row 'plain': valid_data: is empty"):
        planned(options={"valid_data": {}}, sweep=None)
    with pytest.raises(UserError, match="row 'new': --micro-batch-size 0: must be"):
        planned(rows={"new": {"evaluate": {"micro_batch_size": 0}}})
    with pytest.raises(UserError, match="row 'short': exit_interval, exit_duration_in_mins: a study needs whole"):
        planned(rows={"short": {"exit_interval": 2}})
    with pytest.raises(UserError, match=r"row 'plain': .*--global-batch-size 32"):
        planned(processes=3, sweep=None)


def test_a_run_of_several_processes(planned: Plan) -> None:
    rows = {"half": {"micro_batch_size": 16}}
    run = planned(processes=2, rows=rows, sweep=None)[0]
    assert run.command[:2] == ("-m", "megatron_lpc.study.one_run")
    assert run.command[2:4] == ("--processes", "2")
    assert "--processes" not in planned(rows=rows, sweep=None)[0].command
