"""The driver of the runs on a GPU: parts that fail or take too long are recorded, and the summary checks the goals."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest

from benchmarks.gpu import wheels
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.goals import GOALS
from benchmarks.gpu.parts import all_parts
from benchmarks.gpu.run import read_records, run
from benchmarks.gpu.summary import summary

TABLE = """model,N,L,provider,ms,of product
llama-3-8b,8192,1,pairwise,33.0,79%
llama-3-8b,8192,2,pairwise,45,58%
llama-3-8b,8192,1,recompute,51,50%
llama-3-8b,8192,1,frozen,20,140%
"""


def is_running(process_id: int) -> bool:
    """Whether the process exists, and not only until its parent asks how it ended."""
    try:
        status = Path(f"/proc/{process_id}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_a_failing_part_and_a_slow_one_are_recorded(tmp_path: Path) -> None:
    failed = run("environment", ["-c", "raise SystemExit('no such kernel')"], 60, tmp_path)
    assert (failed.result, failed.note, failed.limit) == ("failed", "no such kernel", 60)
    stubborn = "trap '' TERM; while :; do sleep 1; done"
    started = f"child = subprocess.Popen(['sh', '-c', {stubborn!r}])"
    program = f"import subprocess; {started}; print(child.pid, flush=True); child.wait()"
    start = time.monotonic()
    slow = run("inspect", ["-c", program], 1, tmp_path)
    assert slow.result == "exceeded its limit"
    assert time.monotonic() - start < 30
    deadline = time.monotonic() + 20
    while is_running(int(slow.note)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(int(slow.note))
    passed = run("scoring", ["-c", "print('fine')"], 60, tmp_path)
    assert passed.passed
    assert read_records(tmp_path, ["environment", "inspect", "training", "scoring"]) == [failed, slow, passed]


def test_the_summary_judges_the_goals_of_the_gpu(tmp_path: Path) -> None:
    (tmp_path / "training.csv").write_text(TABLE)
    on_h200, on_h100 = (summary(f"NVIDIA {gpu}", {}, [], tmp_path) for gpu in ("H200", "H100 80GB HBM3"))
    assert "## Goals: 2 pass, 1 fail, 6 not measured" in on_h200
    assert "| full pass, one latent, `pairwise` | at most 34.4 ms | 33 | pass |" in on_h200
    assert "| two latents beside one, `pairwise` | at most 1.25 times | 1.364 | fail |" in on_h200
    assert "| full pass, one latent, `recompute` | at most 50.4 ms | 51 | fail |" in on_h100
    assert "Goals: none for this GPU" in summary("NVIDIA A100", {}, [], tmp_path)


def test_goals_and_limits_fit_the_parts() -> None:
    assert {goal.part for goal in GOALS} <= set(all_parts())
    assert all(part.limit < 540 for part in all_parts().values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "no part is called 'nope'"),
        (["list", "training"], "stand alone"),
        (["prepare"], "prepare needs --wheels"),
        (["train-llama-3-8b"], "needs --pairs"),
        (["--wheels", "/no/such/folder"], "--wheels: there is no /no/such/folder"),
    ],
)
def test_what_cannot_be_run(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_dry_run_ends_with_a_summary(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "run_gpu.sh"
    command = ["bash", str(script), "--dry-run", "--results", str(tmp_path), "tests-gumbel_mix", "gumbel-mix"]
    done = subprocess.run(command, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "## Parts: 2 of 2 passed" in (tmp_path / "summary.md").read_text()
    assert (tmp_path / "gumbel-mix.csv").exists()


@pytest.mark.slow
def test_installs_offline_beside_torch(tmp_path: Path) -> None:
    """Into an environment that has nothing but pip and the names of torch and Triton."""
    folder = tmp_path / "wheels"
    try:
        wheels.prepare(folder, ("rich",), ("liger-kernel==0.8.5", "no-such-package-of-this-name"))
    except wheels.PackageError as error:
        pytest.skip(f"no registry: {error}")
    python = wheels._python_with_torch(tmp_path / "target")
    venv.EnvBuilder(with_pip=True, clear=False).create(tmp_path / "target")
    program = (
        "from pathlib import Path; from benchmarks.gpu.wheels import install; "
        f"print(*install(Path({str(folder)!r}), ('rich',), ('liger-kernel', 'no-such-package-of-this-name')))"
    )
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run([str(python), "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "no-such-package-of-this-name", done.stdout + done.stderr
