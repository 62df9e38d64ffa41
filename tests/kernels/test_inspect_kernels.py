"""Compiles every kernel that ships for every target, and the same with a limit broken."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from program import load_program

pytest.importorskip("triton", reason="PyTorch for CPU comes without Triton: pip install triton")

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "kernels" / "inspect_kernels.py"
README = ROOT / "kernels" / "README.md"


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, str(PROGRAM), *arguments],
        env={**os.environ, "TRITON_INTERPRET": "0", **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def program(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return load_program("kernels/inspect_kernels.py")


def table(path):
    version, *lines = path.read_text().partition("<!-- inspect_kernels -->\n")[2].partition("<!-- /")[0].splitlines()
    return version, lines


def test_every_shipped_kernel_keeps_its_limits(tmp_path):
    made = tmp_path / "README.md"
    made.write_text("<!-- inspect_kernels -->\n<!-- /inspect_kernels -->\n")
    result = run("--update", str(made), TRITON_CACHE_DIR=str(tmp_path / "cache"))
    assert "Compiled with" in made.read_text(), result.stderr
    broken = [line for line in result.stderr.splitlines() if line.startswith("inspect_kernels: ")]
    assert result.returncode == (1 if broken else 0), result.stderr
    (version, lines), (stated_version, stated) = table(made), table(README)
    if version != stated_version:
        # Another compiler allots other registers, and may find one too few; all other limits hold.
        broken = [line for line in broken if not re.search(r": \d bytes of stack$", line)]
        lines, stated = ([line.split("|")[1:3] for line in which] for which in (lines, stated))
    assert not broken
    assert lines == stated, "out of date: python kernels/inspect_kernels.py --update kernels/README.md"


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"fused_fp64": False}, {"enable_fp_fusion": True}, r"[1-9]\d* fused fp64 operations"),
        ({"matrix": True}, {}, "no matrix instruction"),
        ({}, {"maxnreg": 24}, r"[1-9]\d* bytes of stack"),
    ],
)
def test_broken_limit_is_found(program, monkeypatch, change, options, message):
    row = next(row for row in program.shipped() if row.name.startswith("gumbel_mix forward"))
    broken = replace(row, **change, options={**row.options, **options})
    monkeypatch.setattr(program, "shipped", lambda: (broken,))
    (found,) = program.compile_kernel(row.name, "sm_90").broken
    assert re.fullmatch(message, found)


def test_too_much_shared_memory_is_found(program, monkeypatch):
    row = next(row for row in program.shipped() if row.name.startswith("gumbel_mix forward"))
    monkeypatch.setitem(program._TARGETS, "gfx942", replace(program._TARGETS["gfx942"], shared=100))
    assert program.compile_kernel(row.name, "gfx942").broken == ("4096 bytes of shared memory, gfx942 has 100",)


def test_broken_limit_ends_the_program(program, monkeypatch, capsys):
    row = program.shipped()[0]
    made = program.Made(row.name, "sm_90", 255, 8, 0, 0, 0, ("8 bytes of stack",))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(program, "compile_all", lambda targets, jobs: [made])
    assert program.main([]) == 1
    out, err = capsys.readouterr()
    assert "255" in out
    assert err == f"inspect_kernels: {row.name} on sm_90: 8 bytes of stack\n"


def test_errors(program, monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(program, "compile_all", lambda targets, jobs: [])
    unmarked = tmp_path / "README.md"
    unmarked.write_text("no marks")
    assert program.main(["--update", str(unmarked)]) == 1
    assert "README.md: no line <!-- inspect_kernels -->" in capsys.readouterr().err
    assert program.main(["--update", str(tmp_path / "none.md")]) == 1
    assert "none.md" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        program.main(["--jobs", "0"])
    assert "--jobs must be at least 1, got 0" in capsys.readouterr().err
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit):
        program.main([])
    assert "unset it" in capsys.readouterr().err
