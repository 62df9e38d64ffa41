"""The sweep over the options of the latent: what it would run, what it runs again, and what it shows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.codes import __main__ as program
from benchmarks.codes.bounds import with_two_codes, without_codes
from benchmarks.codes.execute import execute
from benchmarks.codes.plan import PlannedRun, plan_runs
from benchmarks.codes.sweep import read_sweep
from megatron_lpc.command_line import UserError
from megatron_lpc.config import Config, validate, validate_episodes

FILES = sorted((Path(program.__file__).parent).glob("*.yaml"))
SWEEP = {
    "config": "examples/recovery/plain.yaml",
    "seeds": [1, 2],
    "data": {"two": [], "three": []},
    "options": {"latent_mode": "lpc", "train_data": ["{data}/train.jsonl"], "valid_data": {"d": "{data}/test.jsonl"}},
    "support": {"data": "{data}/valid.jsonl", "pairs": 4},
    "report": {"disagree": "d", "agree": "a"},
    "base": {"codebook_size": 8, "kl_warmup_iters": 7},
    "rows": {"plain": {"latent_mode": "none"}, "both": {"gumbel_tau": 2.0, "latent_lr": 0.5}},
    "sweep": {"codebook_size": [2, 8], "kl_weight": [0.0, 0.5]},
}
ROWS = ["base", "plain", "both", "codebook_size=2", "codebook_size=8", "kl_weight=0.0", "kl_weight=0.5"]


def planned(folder: Path, seeds: tuple[int, ...] = (1,), **changes: Any) -> list[PlannedRun]:
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(SWEEP | changes, sort_keys=False))
    return plan_runs(read_sweep(file), folder, data=["two"], seeds=seeds)


def report(support: float) -> dict[str, Any]:
    metrics = {"rewards/accuracies": 0.5, "lpc/kl": 0.75, "lpc/active_codes": 2.0}
    found = {"metrics": {"prior": metrics}, "information": {"bits": 1.0}, "support": {"accuracy": {"support": support}}}
    return {"data": {"d": found, "a": found}}


def finish(run: PlannedRun, support: float = 0.9) -> None:
    run.keep_options()
    (run.folder / "report.json").write_text(json.dumps(report(support)))


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_each_row_of_our_sweeps_is_a_valid_run(file: Path, tmp_path: Path) -> None:
    sweep = read_sweep(file)
    for run in plan_runs(sweep, tmp_path, data=list(sweep.data), seeds=[1]):
        validate(run.config, 1, "cpu")
        validate_episodes(run.config, 1)


def test_runs_of_equal_options_are_one(tmp_path: Path) -> None:
    runs = planned(tmp_path)
    assert [run.row for run in runs] == ROWS
    assert len({run.folder for run in runs}) == len(ROWS) - 1
    by_row = {run.row: run for run in runs}
    assert by_row["codebook_size=8"].folder == by_row["base"].folder == tmp_path / "runs" / "two" / "base" / "seed1"
    finish(by_row["base"])
    assert by_row["codebook_size=8"].is_finished()
    assert not by_row["codebook_size=2"].is_finished()


def test_a_run_has_the_options_of_file_base_and_row(tmp_path: Path) -> None:
    by_row = {run.row: run for run in planned(tmp_path, seeds=(5,))}
    base, both, plain = (by_row[row].config for row in ("base", "both", "plain"))
    assert (base.latent.codebook_size, base.latent.kl_warmup_iters, base.training.seed) == (8, 7, 5)
    assert base.data.train_data == [str(tmp_path / "data" / "two" / "train.jsonl")]
    assert (both.latent.gumbel_tau, both.training.latent_lr) == (2.0, 0.5)
    assert plain.latent.latent_mode == "none"
    assert by_row["plain"].support == {}, "a model without codes has no support"
    assert by_row["base"].support == {"data": f"{tmp_path}/data/two/valid.jsonl", "pairs": 4, "seed": 5}


def test_other_options_make_a_run_unfinished(tmp_path: Path) -> None:
    for run in planned(tmp_path):
        finish(run)
    assert all(run.is_finished() for run in planned(tmp_path))
    changed = planned(tmp_path, base={"codebook_size": 8, "kl_warmup_iters": 9})
    assert [run.row for run in changed if run.is_finished()] == ["plain", "kl_weight=0.0"], "idle options do not count"
    support = planned(tmp_path, support={"pairs": 5})
    assert [run.row for run in support if run.is_finished()] == ["plain"]


def test_options_that_come_and_go_count_where_they_are_set(tmp_path: Path) -> None:
    run = planned(tmp_path)[0]
    finish(run)
    file = run.folder / "options.json"
    kept = json.loads(file.read_text())
    kept["options"]["gone"] = 3
    del kept["options"]["gumbel_tau"]
    file.write_text(json.dumps(kept))
    assert run.is_finished(), "both are at their default"
    file.write_text(json.dumps(kept | {"changed": [*kept["changed"], "gone"]}))
    assert not run.is_finished()
    del kept["options"]["codebook_size"]
    file.write_text(json.dumps(kept))
    assert not run.is_finished(), "the sweep sets it, and the run did not know it"


def test_what_is_cut_off_or_failed_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = "import sys; open(sys.argv[1], 'w').write(sys.argv[2])"

    def command(run: PlannedRun) -> list[str]:
        if run.row == "both":
            return ["-c", "raise SystemExit(3)"]
        return ["-c", write, str(run.folder / "report.json"), json.dumps(report(0.9))]

    monkeypatch.setattr(PlannedRun, "command", command)
    runs = planned(tmp_path)
    finish(runs[0])
    (runs[1].folder).mkdir(parents=True)
    (runs[1].folder / "metrics.jsonl").write_text("left over")
    ended = list(execute(runs, jobs=2))
    assert sorted(run.row for run in ended) == sorted(["plain", "both", "codebook_size=2", *ROWS[-2:]])
    assert not (runs[1].folder / "metrics.jsonl").exists()
    assert [run.row for run in runs if not run.is_finished()] == ["both"]
    printed = capsys.readouterr().out
    assert printed.startswith("5 runs to do, 2 at a time\n")
    assert "two both seed 1: FAILED, see " in printed
    assert "[5/5] " in printed
    assert [run.row for run in execute(runs, jobs=1)] == ["both"]


def test_ending_the_sweep_ends_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(float(sys.argv[2]))"

    def command(run: PlannedRun) -> list[str]:
        return ["-c", waits, str(run.folder / "pid"), "0" if run.row == "base" else "500"]

    monkeypatch.setattr(PlannedRun, "command", command)
    sweep = execute(planned(tmp_path), jobs=2)
    assert next(sweep).row == "base"
    sweep.close()
    pids = [int(file.read_text()) for file in tmp_path.glob("runs/two/*/seed1/pid") if file.read_text()]
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_what_fills_a_cache_runs_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "filled"
    fill = "import os, sys, time; time.sleep(float(sys.argv[2])); open(sys.argv[1], sys.argv[3]).close()"

    def command(run: PlannedRun) -> list[str]:
        first = run.row == "base"
        return ["-c", fill, str(cache), "0.5" if first else "0", "x" if first else "r"]

    monkeypatch.setattr(PlannedRun, "command", command)
    rows = {"rows": {}, "sweep": {"codebook_size": [2, 4]}}
    base = {"freeze_backbone": True, "latent_lr": 0.01, "cache_hidden_states": "{output}/hidden"}
    runs = planned(tmp_path, base=base, **rows)
    ended = [run.row for run in execute(runs, jobs=3)]
    assert ended[0] == "base"
    assert sorted(ended) == ["base", "codebook_size=2", "codebook_size=4"]
    assert all("Error" not in (run.folder / "log.txt").read_text() for run in runs)


def test_table_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = planned(tmp_path, seeds=(1, 2))
    for run in runs[:-1]:
        finish(run, support=0.5 + run.seed / 10)
    pairs = [("p", "x", "y", "ada"), ("p", "y", "x", "ben"), ("q", "x", "y", "ada"), ("q", "x", "y", "ben")]
    rows = [dict(zip(("prompt", "chosen", "rejected", "annotator"), pair, strict=True)) for pair in pairs]
    (tmp_path / "data" / "two").mkdir(parents=True)
    (tmp_path / "data" / "two" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    program.main([str(tmp_path / "sweep.yaml"), "--output", str(tmp_path), "--data", "two", "--no-run"])
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[2] == "## two"
    assert lines[4].startswith("On disagreeing pairs at most 75.0% without knowing the annotator, and 100.0% with two")
    cells = "0.75 / 0.75 | 1.00 / 1.00 | 2 / 2 | 60.0 / 70.0 | 50.0 / 50.0 | 60.0 / 70.0"
    assert f"| base | {cells} |" in lines
    assert f"| both (gumbel_tau=2.0, latent_lr=0.5) | {cells} |" in lines
    assert [line.split(" ")[1] for line in lines[8:]] == ROWS
    assert lines[-1].startswith("| kl_weight=0.5 | 0.75 | "), "of the seed that is finished"
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert "13 finished runs" in capsys.readouterr().out


def test_bounds_of_annotators_who_disagree_in_part() -> None:
    choices = {"ada": "0000", "ben": "1111", "cleo": "0001", "dan": "1110"}
    labelled = [{name: bits[place] for name, bits in choices.items()} for place in range(4)]
    assert without_codes(labelled) == 1 / 2
    assert (
        without_codes([{name: bits for name, bits in chosen.items() if name != "dan"} for chosen in labelled]) == 2 / 3
    )
    assert with_two_codes(labelled) == (4 + 4 + 3 + 3) / 16


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown option 'codebok'"):
        planned(tmp_path, base={"codebok": 1})
    assert planned(tmp_path, base={"lr": "default"})[0].config.training.lr == Config().training.lr != 2e-3
    with pytest.raises(UserError, match=r"two base seed 1: --gumbel-tau -1\.0: must be"):
        program.check_options(planned(tmp_path, base={"gumbel_tau": -1.0}))
    with pytest.raises(UserError, match="must have the keys base, config"):
        planned(tmp_path, other=1)
    with pytest.raises(UserError, match="--rows: none of base, plain"):
        program.chosen(ROWS[:2], ["paper"], "--rows")
