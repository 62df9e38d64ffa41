"""Counts of style, the table of latents with its paired intervals, and the columns."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from megatron_lpc.generation.columns import column_tables
from megatron_lpc.generation.latents import active_codes
from megatron_lpc.generation.prompts import Prompt
from megatron_lpc.generation.respond import Response
from megatron_lpc.generation.style import asks, lists, refuses, style_table, type_token_ratio


def rendered(table: Table, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def cells(table: Table) -> dict[str, list[str]]:
    """Heading -> cells."""
    return {str(column.header): list(map(str, column.cells)) for column in table.columns}


def test_type_token_ratio():
    assert type_token_ratio("The cat saw the dog; it's THE end.") == pytest.approx(6 / 8)
    assert type_token_ratio("... !") == 0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("I'm sorry, but no.", True),
        ("I’m sorry, but no.", True),
        ("Well. I can't help with that.", True),
        ("I cannot do this", True),
        ("As an AI, I have no taste.", True),
        ("I can tell you.", False),
        ("You cannot miss it.", False),
        ("Sure. " * 60 + "I'm sorry", False),
    ],
)
def test_refusals(text, found):
    assert refuses(text) == found


def test_questions_and_lists():
    assert asks("Why? Because.")
    assert not asks("Because.")
    assert lists("Two:\n- one\n- two")
    assert lists("1. one\n2) two")
    assert not lists("One:\n- one")
    assert not lists("3.14 is pi\nand 2.7 is e")


def response(length: int, *, is_cut: bool = False) -> Response:
    return Response(text="word " * length, num_tokens=length, is_cut=is_cut)


def test_lengths_are_compared_prompt_by_prompt():
    """Differences 5, 5, 5, 9: mean 6, standard deviation 2, t(0.975, 3) = 3.182, so the half width is 3.182."""
    base = [10, 20, 30, 40]
    responses = {
        "prior": [response(length) for length in base],
        "brief": [response(length - 5 - 4 * (length == 40), is_cut=length == 10) for length in base],
    }
    found = cells(style_table(responses))
    assert found["latent"] == ["prior", "brief"]
    assert found["tokens"] == ["25.0 ± 20.5", "19.0 ± 18.2"]
    assert found["against prior"] == ["", "-6.0 ± 3.2"]
    assert found["cut"] == ["0%", "25%"]


def test_one_prompt_has_no_interval():
    responses = {"a": [response(3)], "b": [response(5)]}
    found = cells(style_table(responses))
    assert found["tokens"] == ["3.0", "5.0"]
    assert found["against a"] == ["", "+2.0"]


def test_columns_stand_side_by_side_and_go_on_below():
    prompts = [Prompt("why [so]", [1])]
    responses = {f"code:{code}": [Response(f"answer [{code}]", 2, code == 3)] for code in range(5)}
    tables = list(column_tables(prompts, responses, width=60))
    assert [len(table.columns) for table in tables] == [2, 2, 1]
    text = rendered(tables[0], 60)
    assert "why [so]" in text
    assert any("answer [0]" in line and "answer [1]" in line for line in text.splitlines())
    assert "code:3: 2 (cut)" in rendered(tables[1], 60)


def test_active_codes():
    assert active_codes([[0.7, 0.1, 0.1, 0.1], [0.1, 0.26, 0.14, 0.5]], 8) == [0, 1, 3]
    assert active_codes([[0.7, 0.1, 0.1, 0.1], [0.1, 0.26, 0.14, 0.5]], 2) == [0, 3]
