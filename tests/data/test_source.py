import gzip
import json

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from megatron_lpc.data.source import BadRow, Row, identity, read_rows

VALUES = [{"prompt": "a", "chosen": [{"role": "assistant", "content": "x"}]}, {"prompt": "b", "chosen": []}]


def write(path, kind):
    table = pa.Table.from_pylist(VALUES)
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path)
    elif kind.startswith("arrow"):
        new = pa.ipc.new_file if kind == "arrow file" else pa.ipc.new_stream
        with new(path, table.schema) as writer:
            writer.write_table(table)
    else:
        text = "".join(json.dumps(row) + "\n" for row in VALUES).encode()
        path.write_bytes(gzip.compress(text) if kind == "gzip" else text)
    return str(path)


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        ("jsonl", ".jsonl"),
        ("gzip", ".jsonl.gz"),
        ("parquet", ".parquet"),
        ("arrow file", ".arrow"),
        ("arrow stream", ".arrow"),
    ],
)
def test_every_format_gives_the_same_rows_and_places(tmp_path, kind, suffix):
    source = write(tmp_path / f"d{suffix}", kind)
    rows = list(read_rows(source))
    assert [row.values for row in rows] == VALUES
    assert [(row.location.file, row.location.line) for row in rows] == [(source, 1), (source, 2)]


def test_hub_name_with_and_without_split(monkeypatch):
    asked = []

    def load_dataset(name, split, streaming):
        asked.append((name, split))
        return datasets.Dataset.from_list(VALUES)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert [row.values for row in read_rows("owner/name")] == VALUES
    assert next(iter(read_rows("owner/name:test[:10%]"))).location.line == 1
    assert asked == [("owner/name", "train"), ("owner/name", "test[:10%]")]
    assert identity("owner/name").startswith("hub:")


def test_hub_failure_names_the_source(monkeypatch):
    def load_dataset(name, split, streaming):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"^owner/name: cannot be loaded from the Hub \(no network\). Check name"):
        list(read_rows("owner/name"))


def test_broken_lines_are_reported_with_their_line_and_the_rest_is_read(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a": \n[1]\n{"a": "\xff"}\n{"a": 2}')
    rows = list(read_rows(str(path)))
    assert [(type(row), row.line if isinstance(row, BadRow) else row.location.line) for row in rows] == [
        (Row, 1),
        (BadRow, 3),
        (BadRow, 4),
        (BadRow, 5),
        (Row, 6),
    ]
    assert str(rows[1]).startswith(f"{path}:3: not valid JSON (Expecting value")
    assert str(rows[2]) == f"{path}:4: a JSON list, not an object. Write one JSON object per line."
    assert "not valid JSON ('utf-8' codec" in str(rows[3])


@pytest.mark.parametrize("name", ["d.parquet", "d.arrow", "d.jsonl.gz"])
def test_a_file_of_another_kind_is_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"hello" * 100)
    with pytest.raises(ValueError, match=f"{name}: cannot be read as"):
        list(read_rows(str(path)))


def test_a_cut_gzip_file_is_refused(tmp_path):
    path = tmp_path / "d.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n' * 100)[:-12])
    with pytest.raises(ValueError, match=r"d.jsonl.gz: cannot be read as jsonl"):
        list(read_rows(str(path)))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("data/missing.jsonl", FileNotFoundError, "no such data file"),
        ("missing", FileNotFoundError, "no such data file"),
        ("d.csv", ValueError, "unknown kind of data file. Give a .jsonl,"),
        ("folder", ValueError, "a folder, not a data file"),
    ],
)
def test_sources_that_are_none(tmp_path, monkeypatch, name, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.csv").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(error, match=f"{name}: {message}"):
        next(iter(read_rows(name)))
    with pytest.raises(error, match=message):
        identity(name)


def test_identity_is_that_of_the_content(tmp_path):
    one, two = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    one.write_text("{}\n")
    two.write_text("{}\n")
    assert identity(str(one)) == identity(str(two))
    two.write_text("[]\n")
    assert identity(str(one)) != identity(str(two))
