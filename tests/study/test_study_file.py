"""What a study may hold, and what is said of what it may not."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_lpc.command_line import UserError
from megatron_lpc.study import study_file
from megatron_lpc.study.study_file import read_study

Write = Callable[..., Path]


def test_the_example_of_the_schema(tmp_path: Path) -> None:
    assert study_file.__doc__ is not None
    example = textwrap.dedent(study_file.__doc__.split("\n\n")[1])
    file = tmp_path / "study.yaml"
    file.write_text(example)
    study = read_study(file)
    assert [*study.rows] == [
        "base",
        "plain",
        "lpc",
        "longer wins",
        *(f"loss_type={loss}, {latent}" for loss in ("dpo", "ipo") for latent in ("plain", "exact")),
        *(f"codebook_size={size}" for size in (2, 8, 32)),
    ]
    assert study.rows["loss_type=ipo, exact"].options == {"loss_type": "ipo", "latent_inference": "exact"}
    assert study.rows["longer wins"].is_constant
    assert study.data["three"].options == {"max_length": 96}
    assert study.support["pairs"] == [0, 8]
    keys = re.findall(r"^(\w+):", example, flags=re.MULTILINE)
    assert sorted(keys) == sorted(study_file.KEYS)


def test_a_grid_by_itself_has_no_base(write_study: Write) -> None:
    study = read_study(write_study(rows=None, sweep=None, grid={"kl_weight": [0.0, 1.0], "codebook_size": [4, 8]}))
    assert [*study.rows] == [f"kl_weight={weight}, codebook_size={size}" for weight in (0.0, 1.0) for size in (4, 8)]
    assert [*read_study(write_study(rows=None, sweep=None)).rows] == ["base"]


def test_the_reference_within_a_grid(write_study: Write) -> None:
    latent = {"plain": {"latent_mode": "none"}, "lpc": {}}
    grid = {"loss_type": ["dpo", "simpo"], "latent": latent}
    study = read_study(write_study(grid=grid, reference={"latent": "plain"}))
    assert study.reference_of(study.rows["loss_type=simpo, lpc"]) == "loss_type=simpo, plain"
    assert study.reference_of(study.rows["loss_type=dpo, plain"]) == "loss_type=dpo, plain"
    assert study.reference_of(study.rows["plain"]) is None
    study = read_study(write_study(grid={"latent": latent}, reference={"latent": "plain"}, rows={"other": {}}))
    assert study.reference_of(study.rows["lpc"]) == "plain"
    assert study.reference_of(study.rows["other"]) is None
    study = read_study(write_study(reference="plain"))
    assert study.reference_of(study.rows["both"]) == "plain"


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"rowz": {}}, "rowz: unknown key; did you mean 'rows'.; known: config, seeds"),
    ({"config": None}, "the key 'config' is missing"),
    ({"config": 3}, "config: must be text, got 3"),
    ({"seeds": []}, r"seeds: must be a list, \[...\], got \[\]"),
    ({"seeds": [1, "2"]}, r"seeds\[1\]: must be a whole number of at least 0, got '2'"),
    ({"seeds": [1, 1]}, "seeds: a seed is there twice"),
    ({"data": {}}, "data: names no set of data"),
    ({"data": {"two": {"command": []}}}, "data.two.command: unknown key; did you mean 'commands'"),
    ({"data": {"two": {"rows": ["sweep"]}}}, r"data.two.rows\[0\]: no row has this name, or one that begins so; rows"),
    ({"data": {"two": ["a 'b"]}}, r"data.two\[0\]: cannot be split into arguments: No closing quotation"),
    (
        {"options": {"codebok_size": 1}},
        "options.codebok_size: unknown option 'codebok_size'; did you mean 'codeb",
    ),
    ({"options": {"codebook_size": 1.5}}, r"options.codebook_size: expected an integer, got 1.5 \(float\)"),
    ({"options": {"seed": 1}}, "options.seed: a study sets the option 'seed' itself"),
    ({"options": [1]}, r"options: must hold 'key: value' lines, got \[1\]"),
    ({"rows": {"a": {"latent_mode": "lcp"}}}, "rows.a.latent_mode: expected one of lpc,.* did you mean 'lpc'"),
    ({"rows": {"a": {"support": {"pair": 8}}}}, "rows.a.support.pair: unknown key; did you mean 'pairs'"),
    ({"rows": {"a": {"command": "x.py"}}}, "rows.a.command: has no {report}, the file that it must write"),
    ({"rows": {"a": {"command": "x.py {report}", "lr": 1}}}, "rows.a: a row with a command trains nothing"),
    ({"rows": {"base": {}}}, "rows: two rows would be named 'base'; rename one"),
    ({"rows": {"a/b": {}, "a_b": {}}}, "rows: two rows would be named 'a_b'; rename one"),
    ({"grid": {"codebook_size": 3}}, "grid.codebook_size: must be a list"),
    ({"grid": {"codebok_size": [3]}}, r"grid.codebok_size\[0\]: unknown option 'codebok_size'"),
    ({"grid": {"a": {"x": {"lr": 1}}, "lr": [1]}}, "grid: two axes set one option, among lr, lr"),
    ({"sweep": {"kl_weight": ["x"]}}, r"sweep.kl_weight\[0\]: expected a number, got 'x'"),
    ({"support": {"pairs": -1}}, "support.pairs: must be a whole number of at least 0, got -1"),
    ({"support": {"data": 3}}, "support.data: expected a string or none"),
    ({"evaluate": {"lr": 1.0}}, "evaluate.lr: an evaluation does not read this option"),
    ({"reference": "plane"}, "reference: no row has this name; did you mean 'plain'.; rows: base, plain"),
    ({"reference": {"latent": "x"}}, "reference.latent: the grid has no such value; it has: no such axis"),
    ({"metrics": ["supports(d)"]}, r"metrics\[0\]: unknown preset 'supports'; did you mean 'support'"),
    ({"metrics": ["accuracy"]}, r"metrics\[0\]: 'accuracy' is neither PRESET\(VALIDATION SET\) nor a place"),
    ({"metrics": {"x": {"paths": "data.d"}}}, "metrics.x.paths: unknown key; did you mean 'path'"),
    ({"metrics": {"x": {"path": "data.d", "scale": "1"}}}, "metrics.x.scale: must be a number, got '1'"),
    ({"metrics": ["kl(d)", "kl(d)"]}, "metrics: a metric is there twice"),
    ({"keep_checkpoints": "yes"}, "keep_checkpoints: must be true or false, got 'yes'"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES, ids=lambda value: str(value)[:50])
def test_mistakes_are_said_in_one_line(changes: dict[str, Any], message: str, write_study: Write) -> None:
    file = write_study(**changes)
    with pytest.raises(UserError, match=f"^{re.escape(str(file))}: {message}") as caught:
        read_study(file)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    with pytest.raises(UserError, match="cannot be read"):
        read_study(file)
    file.write_text("rows:\n  a: {}\n  a: {}\n")
    with pytest.raises(UserError, match=r"study\.yaml:3: not YAML: duplicate key 'a'"):
        read_study(file)
    file.write_text("rows: {a: {command: x {report}}}\n")
    with pytest.raises(UserError, match=r"study\.yaml:1: not YAML: expected") as caught:
        read_study(file)
    assert "\n" not in str(caught.value)
