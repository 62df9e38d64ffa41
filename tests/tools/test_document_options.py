"""The reference of options is generated from the schema, and a stale page is refused."""

from __future__ import annotations

from types import ModuleType

import pytest
from program import load_program

from megatron_lpc.config import all_options


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return load_program("tools/document_options.py")


def test_the_page_in_the_repository_is_current(program):
    program.main(["--check"])


def test_a_stale_or_missing_page_is_refused(program, tmp_path, capsys):
    path = tmp_path / "configuration.md"
    for _ in range(2):
        with pytest.raises(SystemExit) as exit_:
            program.main(["--check", "--page", str(path)])
        assert exit_.value.code == 1
        assert "run `python tools/document_options.py`" in capsys.readouterr().err
        path.write_text(program.page().replace("Peak learning rate", "Learning rate"))
    program.main(["--page", str(path)])
    program.main(["--check", "--page", str(path)])


def test_every_option_has_a_row_with_all_that_is_known_of_it(program):
    rows = [line for line in program.page().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(all_options())
    by_name = {row.split("`")[1]: row for row in rows}
    for name, text in {
        "num_layers": "| `--num-layers` | `int` | `4` | `[1, 4096]` | backbone weights |  | `num_hidden_layers` |",
        "bf16": "| `--[no-]bf16` | `bool` or none | `none` |",
        "train_data": "| `list[str]` | `[]` |",
        "recompute_method": "| `uniform`, `block` or none | `none` |  | run | without --recompute-granularity full |",
        "kl_warmup_iters": "with --latent-mode none; with --latent-mode continuous: no noise, no KL; "
        "with --latent-mode embedding: no codes, no networks, no KL; "
        "with --latent-inference exact (the default with --group-column): no posterior network, no sample, no KL; "
        "with --kl-weight 0",
    }.items():
        assert text in by_name[name]
