"""Make files of pairs of PersonalRewardBench: users to learn from, and others with support sets and pairs to predict.

    python examples/published/personal_reward_bench.py --input MichaelR207/prism_personalized_0125 --output data/prism

The users of the Hub's split `train` are trained on. Of those of its split `test`, pairs with `test` in their column
`split` are to be predicted (test.jsonl), the others are their support sets (support.jsonl). Rows keep the columns
`context`, `chosen`, `rejected` and `user_id`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_lpc.command_line import ArgumentParser, UserError, reports_errors
from megatron_lpc.data.input_errors import input_errors
from megatron_lpc.data.source import Row, read_rows
from megatron_lpc.files import write_text

_COLUMNS = ("context", "chosen", "rejected", "user_id")


def rows_of(source: str) -> Iterator[dict[str, Any]]:
    """The rows of a split that can be read, with the column `split`.

    Raises:
        UserError: a row lacks a column.
    """
    for row in read_rows(source):
        if not isinstance(row, Row):
            continue
        missing = [name for name in (*_COLUMNS, "split") if row.values.get(name) is None]
        if missing:
            raise UserError(f"{source}: a row lacks {', '.join(missing)}; is this PersonalRewardBench?")
        yield row.values


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with 2 and one message when the source cannot be read."""
    with reports_errors():
        parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
        parser.add_argument("--input", required=True, help="Hub name, or a folder with train.jsonl and test.jsonl")
        parser.add_argument("--output", type=Path, required=True, help="folder to write")
        options = parser.parse_args(argv)
        folder = Path(options.input)
        splits = {
            name: str(folder / f"{name}.jsonl") if folder.is_dir() else f"{options.input}:{name}"
            for name in ("train", "test")
        }
        with input_errors():
            found: dict[str, list[dict[str, Any]]] = {"train": list(rows_of(splits["train"]))}
            of_test_users = list(rows_of(splits["test"]))
        known = {row["user_id"] for row in found["train"]}
        both = sorted(known & {row["user_id"] for row in of_test_users}, key=str)
        if both:
            raise UserError(f"{options.input}: {len(both)} users, {both[0]} the first, are in both splits")
        found["support"] = [row for row in of_test_users if row["split"] != "test"]
        found["test"] = [row for row in of_test_users if row["split"] == "test"]
        for name, rows in found.items():
            lines = (json.dumps({column: row[column] for column in _COLUMNS}, ensure_ascii=False) for row in rows)
            write_text(options.output / f"{name}.jsonl", "".join(line + "\n" for line in lines))
        print(", ".join(f"{len(rows):,} rows in {name}.jsonl" for name, rows in found.items()))


if __name__ == "__main__":
    main()
