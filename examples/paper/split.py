"""Split a preference data set: every twentieth row is held out.

    python examples/paper/split.py --input openbmb/UltraFeedback:train --output runs/paper/data

Writes train.jsonl and held_out.jsonl with the rows as they are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from megatron_lpc.command_line import ArgumentParser, reports_errors
from megatron_lpc.data.input_errors import input_errors
from megatron_lpc.data.source import Row, read_rows
from megatron_lpc.files import whole_file

_HELD_OUT = 20


def split(source: str, output: Path) -> tuple[int, int]:
    """Rows to train on and rows held out; rows that cannot be read are left out."""
    counts = [0, 0]
    with ExitStack() as stack:
        paths = [stack.enter_context(whole_file(output / f"{name}.jsonl")) for name in ("train", "held_out")]
        files = [stack.enter_context(path.open("w", encoding="utf-8")) for path in paths]
        for number, row in enumerate(read_rows(source)):
            if isinstance(row, Row):
                part = int(number % _HELD_OUT == 0)
                files[part].write(json.dumps(row.values, ensure_ascii=False) + "\n")
                counts[part] += 1
    return counts[0], counts[1]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with 2 and one message when the source cannot be read."""
    with reports_errors():
        parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
        parser.add_argument("--input", required=True, help="file, folder or Hub name")
        parser.add_argument("--output", type=Path, required=True, help="folder to write")
        options = parser.parse_args(argv)
        with input_errors():
            train, held_out = split(options.input, options.output)
        print(f"{train:,} rows to train on, {held_out:,} held out")


if __name__ == "__main__":
    main()
