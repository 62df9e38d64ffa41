"""Rows of JSON files: one object per line, or a list of objects; as they are, or compressed with gzip or zstd.

Not through `datasets`: its JSON reader ends at a broken line, gives every row the keys of all and turns dates into
timestamps. This one names each broken line and goes on behind it, and never holds more than one row and a buffer.
"""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Iterator

from megatron_lpc.data.row import MAX_ROW_BYTES, START, BadRow, Location, Position, Row, RowRead, Wanted, every_row
from megatron_lpc.outside.json_text import MAX_DEPTH, is_too_deep, parse_json
from megatron_lpc.outside.messages import Malformed

_Stream = io.BufferedReader | gzip.GzipFile

_BOM = b"\xef\xbb\xbf"
_CHUNK = 2**20
_BLANK = re.compile(r"\s*")
_MARKS = re.compile(r'\\.?|[",\[\]{}]', re.DOTALL)
"""What ends an item, or hides such a sign: a backslash takes the letter behind it with it."""
_ONE_PER_LINE = "Write one JSON object per line, in UTF-8"


def read_json(path: str, position: Position = START, wanted: Wanted = every_row) -> Iterator[RowRead]:
    """Rows of a JSON file from `position` on.

    The file holds a list if it begins with a bracket, else lines. Blank lines hold no row.

    Raises:
        ValueError: a list is broken, or its text is not UTF-8.
        OSError, EOFError: the file cannot be read or decompressed.
    """
    with _open(path) as stream:
        if stream.peek(_CHUNK).removeprefix(_BOM).lstrip()[:1] == b"[":
            yield from _read_list(path, stream, position[0], wanted)
        else:
            yield from _read_lines(path, stream, position, wanted)


def _open(path: str) -> _Stream:
    if path.endswith(".gz"):
        return gzip.open(path, "rb")
    if path.endswith(".zst"):
        import pyarrow  # Python reads zstd from 3.14 on

        return io.BufferedReader(pyarrow.input_stream(path, compression="zstd"))
    return open(path, "rb")


def _read_lines(path: str, stream: _Stream, position: Position, wanted: Wanted) -> Iterator[RowRead]:
    number, offset = position
    _skip(stream, offset)
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        offset += len(line)
        is_too_large = len(line) > MAX_ROW_BYTES
        skipped = _skip_line(stream, line) if is_too_large else 0
        offset += skipped
        if line.isspace() and not is_too_large:
            continue
        row: Row | BadRow | None = None
        if wanted():
            location = Location(path, number)
            if is_too_large:
                row = location.too_large(len(line) + skipped)
            else:
                row = _parse_line(location, line.removeprefix(_BOM))
        yield row, (number, offset)


def _skip(stream: _Stream, num_bytes: int) -> None:
    if stream.seekable():
        stream.seek(num_bytes)
        return
    while num_bytes and (read := stream.read(min(num_bytes, _CHUNK))):
        num_bytes -= len(read)


def _skip_line(stream: _Stream, line: bytes) -> int:
    """Bytes left out: what follows of a line of which the start was read."""
    skipped = 0
    while line and not line.endswith(b"\n"):
        line = stream.readline(_CHUNK)
        skipped += len(line)
    return skipped


def _parse_line(location: Location, line: bytes) -> Row | BadRow:
    if b"\0" in line:
        return location.bad_row(
            "the line holds NUL bytes (0x00), as a file that was cut off while it was written, or one in UTF-16",
            "Write the file again, in UTF-8",
        )
    try:
        return _row(location, parse_json(line.decode()))
    except UnicodeDecodeError as error:
        return location.bad_row(f"not valid JSON ({error})", _ONE_PER_LINE)
    except Malformed as error:
        return location.bad_row(str(error), _ONE_PER_LINE)


def _read_list(path: str, stream: _Stream, start: int, wanted: Wanted) -> Iterator[RowRead]:
    """Rows of a list behind the first `start`; they are parsed too, since only that finds their end."""
    for row in _list_rows(path, io.TextIOWrapper(stream, encoding="utf-8-sig")):
        number = row.line if isinstance(row, BadRow) else row.location.line
        if number > start:
            yield row if wanted() else None, (number, 0)


def _list_rows(path: str, text: io.TextIOWrapper) -> Iterator[Row | BadRow]:
    """The items of a JSON list, parsed one by one: a list of any length takes the memory of its longest item."""
    decoder = json.JSONDecoder()
    buffer = text.read(_CHUNK)
    at = _behind_blanks(buffer, 0) + 1
    num_items = 0
    while True:
        location = Location(path, num_items + 1)
        row = f"row {location.line} of the list"
        try:
            at = _behind_blanks(buffer, at)
            if num_items == 0 and buffer[at : at + 1] == "]":
                break
            item, end = decoder.raw_decode(buffer, at)
            num_bytes = len(buffer[at:end].encode())
            end = _behind_blanks(buffer, end)
            if buffer[end : end + 1] not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' or ']'", buffer, end)
        except json.JSONDecodeError as error:
            if len(buffer) - at <= MAX_ROW_BYTES:
                # The item may go on behind the buffer.
                more = text.read(_CHUNK)
                if not more:
                    raise ValueError(f"{row} is not valid JSON: {error.msg}") from error
                buffer, at = buffer[at:] + more, 0
                continue
            if not _is_cut_off(error):
                raise ValueError(f"{row} is not valid JSON: {error.msg}") from error
            item, end = None, 0
            num_bytes, buffer = _skip_item(row, buffer[at:], text)
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets as deep
            raise ValueError(f"{row} is not valid JSON: {error}") from error
        num_items += 1
        yield location.too_large(num_bytes) if num_bytes > MAX_ROW_BYTES else _row(location, item)
        at = end + 1
        if buffer[end] == "]":
            break
    if (buffer[at + (num_items == 0) :] + text.read(_CHUNK)).strip():
        raise ValueError(f"text follows the end of the list, behind row {num_items}")


def _is_cut_off(error: json.JSONDecodeError) -> bool:
    """Whether the end of the text is what is wrong: a string has none, or a word, number or escape may go on."""
    return error.msg.startswith("Unterminated string") or len(error.doc) - error.pos < len("-Infinity")


def _skip_item(row: str, piece: str, text: io.TextIOWrapper) -> tuple[int, str]:
    """Read to the end of an item that begins with `piece`, found by its quotes and brackets alone.

    Returns:
        The bytes of the item, and the text from the comma or bracket behind it on.
    """
    num_bytes, depth, in_string, escaped = 0, 0, False, False
    while piece:
        marks = _MARKS.finditer(piece, int(escaped))
        escaped = False
        for mark in marks:
            sign = mark.group()
            escaped = sign == "\\"  # The letter that it escapes is the first of the next piece.
            if sign == '"':
                in_string = not in_string
            elif in_string or sign.startswith("\\"):
                continue
            elif depth == 0 and sign in ",]":
                return num_bytes + len(piece[: mark.start()].encode()), piece[mark.start() :]
            else:
                depth += {"[": 1, "{": 1, "]": -1, "}": -1, ",": 0}[sign]
        num_bytes += len(piece.encode())
        piece = text.read(_CHUNK)
    raise ValueError(f"{row} has no end")


def _behind_blanks(buffer: str, at: int) -> int:
    blanks = _BLANK.match(buffer, at)
    assert blanks is not None
    return blanks.end()


def _row(location: Location, values: object) -> Row | BadRow:
    if is_too_deep(values):
        return location.bad_row(f"values are nested in one another more than {MAX_DEPTH} times", "Remove the row")
    if not isinstance(values, dict):
        return location.bad_row(f"a JSON {type(values).__name__}, not an object", "Write one JSON object per row")
    return Row(location, values)
