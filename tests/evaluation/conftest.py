"""Generated preferences, their tokenizer, and runs of training and evaluation in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from program import load_program


@pytest.fixture(scope="session")
def make_world(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """Given the generator's flags: the flags of a run on what it writes, tokenizer included."""

    def make(*flags: str) -> list[str]:
        folder = tmp_path_factory.mktemp("world")
        load_program("tools/make_preferences.py").main(["--output", str(folder), *flags])
        load_program("tools/train_tokenizer.py").train_tokenizer(
            [str(folder / "train.jsonl")], str(folder / "tokenizer"), 400
        )
        sets = [f"{name}={folder}/test_{name}.jsonl" for name in ("agree", "disagree")]
        files = ["--train-data", f"{folder}/train.jsonl", "--tokenizer-model", f"{folder}/tokenizer.model"]
        return [*files, "--data-cache-path", f"{folder}/cache", "--valid-data", *sets]

    return make


@pytest.fixture(scope="session")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Run the evaluation's command line in this process and give the JSON that it wrote."""

    def run(*flags: str) -> dict[str, Any]:
        from megatron_lpc.evaluate import main

        output = tmp_path_factory.mktemp("report") / "report.json"
        main([*flags, "--output", str(output)])
        return json.loads(output.read_text())

    return run
