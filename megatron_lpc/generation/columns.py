"""Responses side by side: one table per prompt, one column per latent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table
from rich.text import Text

from megatron_lpc.generation.prompts import Prompt
from megatron_lpc.generation.respond import Response

_COLUMN_WIDTH = 26
"""Characters below which a column is hard to read: further latents go to another table."""


def column_tables(
    prompts: Sequence[Prompt], responses: Mapping[str, Sequence[Response]], width: int
) -> Iterator[Table]:
    """Tables of the responses to each prompt.

    Args:
        responses: name of a latent -> responses to at least these prompts.
        width: characters of a line.
    """
    names = list(responses)
    at_once = max(1, width // _COLUMN_WIDTH)
    for number, prompt in enumerate(prompts):
        for start in range(0, len(names), at_once):
            shown = names[start : start + at_once]
            # `Text`, for markup would swallow a text such as `[x]`.
            table = Table(title=Text(prompt.text), title_justify="left", width=width)
            for name in shown:
                response = responses[name][number]
                table.add_column(Text(f"{name}: {response.num_tokens}{' (cut)' * response.is_cut}"), ratio=1)
            table.add_row(*(Text(responses[name][number].text.strip()) for name in shown))
            yield table
