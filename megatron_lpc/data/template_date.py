"""The date that a data set's chat template writes: the same for all of its rows, however long they take."""

from __future__ import annotations

import datetime
from pathlib import Path

from megatron_lpc.data.tokenizer import Tokenizer
from megatron_lpc.files import write_text
from megatron_lpc.outside.files import read_text
from megatron_lpc.outside.messages import reason

DATE_FILE = "chat_template_date.txt"


def keep_template_date(folder: Path, tokenizer: Tokenizer) -> str | None:
    """Let the template see the date that is kept in a folder, or keep the tokenizer's there.

    Args:
        folder: where the data set is being built, perhaps by several runs, one after the other.

    Returns:
        The date as 2026-01-31; None where the template does not ask for it.
    """
    if tokenizer.template_date is None:
        return None
    file = folder / DATE_FILE
    if file.is_file():
        try:
            tokenizer.template_date = datetime.date.fromisoformat(read_text(file))
        except ValueError as error:
            raise ValueError(f"{file}: holds no date ({reason(error)}). Delete its folder.") from error
    else:
        write_text(file, tokenizer.template_date.isoformat())
    return tokenizer.template_date.isoformat()
