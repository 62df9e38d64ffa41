import gzip
import json
import re

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from megatron_lpc.data import json_rows, row, table_rows
from megatron_lpc.data.source import BadRow, Row, identity, open_shards, read_rows

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
        is_list = "list" in kind
        text = json.dumps(VALUES, indent=2) if is_list else "".join(json.dumps(row) + "\n" for row in VALUES)
        data = text.encode("utf-8-sig" if "BOM" in kind else "utf-8")
        if path.suffix == ".gz":
            data = gzip.compress(data)
        elif path.suffix == ".zst":
            data = pa.compress(data, codec="zstd", asbytes=True)
        path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        ("lines", ".jsonl"),
        ("lines with BOM", ".jsonl"),
        ("lines", ".json"),
        ("lines", ".jsonl.gz"),
        ("lines", ".json.zst"),
        ("list", ".json"),
        ("list with BOM", ".json"),
        ("list", ".json.gz"),
        ("list", ".jsonl.zst"),
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
    (shard,) = open_shards(source)
    positions = [position for _, position in shard.rows()]
    assert [row.values for row, _ in shard.rows(positions[0])] == VALUES[1:]
    assert not list(shard.rows(positions[1]))
    for are_wanted in ([False, True], [True, False], [False, False]):
        answers = iter(are_wanted)
        found = list(shard.rows(wanted=lambda answers=answers: next(answers)))
        assert [position for _, position in found] == positions
        assert [row and row.location.line for row, _ in found] == [
            number if is_wanted else None for number, is_wanted in enumerate(are_wanted, start=1)
        ]


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


def test_hub_configurations(monkeypatch):
    asked = []

    def load_dataset(path, split, streaming, name=None, data_dir=None):
        if name is None:
            raise ValueError("Config name is missing")
        asked.append((path, name, data_dir, split))
        return datasets.Dataset.from_list(VALUES)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (shard,) = open_shards("owner/name#en-US.c+d")
    assert (shard.name, [row.values for row, _ in shard.rows()]) == ("owner/name#en-US.c+d", VALUES)
    assert len(list(read_rows("owner/name#b@folder:x+y"))) == 2 * len(VALUES)
    assert asked == [
        ("owner/name", "en-US.c+d", None, "train"),
        ("owner/name", "b", "folder", "x"),
        ("owner/name", "b", "folder", "y"),
    ]
    with pytest.raises(ValueError, match=r"\(Config name is missing\)\. Check name, configuration \(owner/name#conf"):
        list(read_rows("owner/name"))


def test_hub_failure_names_the_source(monkeypatch):
    def load_dataset(name, split, streaming):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"^owner/name: cannot be loaded from the Hub \(no network\). Check name"):
        list(read_rows("owner/name"))


def test_rows_that_are_not_wanted_are_not_parsed(tmp_path, monkeypatch):
    path = tmp_path / "d.jsonl"
    path.write_text('{"n": 1}\n\n  \n{broken\n{"n": 3}\n')
    monkeypatch.setattr(json_rows, "parse_json", lambda text: json.loads(text) if "3" in text else 1 / 0)
    answers = iter([False, False, True])
    (found,) = read_rows(str(path), lambda: next(answers))
    assert (found.values, found.location.line) == ({"n": 3}, 5)
    write(tmp_path / "d.parquet", "parquet")
    monkeypatch.setattr(table_rows, "_rows_of_part", lambda *_: 1 / 0)
    assert not list(read_rows(str(tmp_path / "d.parquet"), lambda: False))


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
    assert str(rows[2]) == f"{path}:4: a JSON list, not an object. Write one JSON object per row."
    assert "not valid JSON ('utf-8' codec" in str(rows[3])


@pytest.mark.parametrize("name", ["d.parquet", "d.arrow", "d.jsonl.gz"])
def test_a_file_of_another_kind_is_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"hello" * 100)
    with pytest.raises(ValueError, match=f"{name}: cannot be read as"):
        list(read_rows(str(path)))


def test_a_cut_gzip_file_is_refused(tmp_path):
    path = tmp_path / "d.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n' * 100)[:-4])
    with pytest.raises(ValueError, match=r"d.jsonl.gz: cannot be read as JSON behind row 1\d\d"):
        list(read_rows(str(path)))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("data/missing.jsonl", FileNotFoundError, "no such data file"),
        ("missing", FileNotFoundError, "no such data file"),
        ("d.csv", ValueError, "unknown kind of data file. Give files (.jsonl,"),
        ("*.parquet", FileNotFoundError, "no such data file"),
        ("folder", FileNotFoundError, "no such data file"),
        ("folder:test", FileNotFoundError, "no such data file"),
    ],
)
def test_sources_that_are_none(tmp_path, monkeypatch, name, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.csv").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(error, match=re.escape(f"{name}: {message}")):
        next(iter(read_rows(name)))
    with pytest.raises(error, match=re.escape(message)):
        identity(name)


def test_identity_is_that_of_the_content(tmp_path):
    one, two = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    one.write_text("{}\n")
    two.write_text("{}\n")
    assert identity(str(one)) == identity(str(two))
    two.write_text("[]\n")
    assert identity(str(one)) != identity(str(two))


def texts(source):
    return [row.values["prompt"] for row in read_rows(source)]


def test_shards_of_a_pattern_and_of_a_folder(tmp_path, write_jsonl):
    for name in ("b", "a", "c"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"prompt": name}])
    (tmp_path / "README.md").write_text("# Data")
    (tmp_path / "notes.txt").write_text("not data")
    assert texts(f"{tmp_path}/[ab].jsonl") == ["a", "b"]
    assert texts(str(tmp_path)) == ["a", "b", "c"]
    assert [shard.path for shard in open_shards(str(tmp_path))] == [f"{tmp_path}/{name}.jsonl" for name in "abc"]
    assert identity(str(tmp_path)) != identity(f"{tmp_path}/[ab].jsonl")


def test_splits_of_a_folder_are_those_that_datasets_finds(tmp_path, write_jsonl):
    (tmp_path / "data").mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        write_jsonl(tmp_path / "data" / f"{name}.jsonl", [{"prompt": name}])
    train = ["train-00000-of-00002", "train-00001-of-00002"]
    assert texts(str(tmp_path)) == texts(f"{tmp_path}:train") == train
    assert texts(f"{tmp_path}:test+train") == ["test-00000-of-00001", *train]
    with pytest.raises(ValueError, match=r"no split `valid`. Name one of train, test, as .*:train"):
        texts(f"{tmp_path}:valid")


def test_folders_of_save_to_disk(tmp_path):
    saved = {name: datasets.Dataset.from_dict({"prompt": [f"{name} {i}" for i in range(6)]}) for name in ("one", "two")}
    saved["one"].save_to_disk(str(tmp_path / "set"), num_shards=2)
    datasets.DatasetDict(saved).save_to_disk(str(tmp_path / "dict"))
    assert texts(f"{tmp_path}/set") == texts(f"{tmp_path}/dict:one") == saved["one"]["prompt"]
    assert len(open_shards(f"{tmp_path}/set")) == 2
    assert texts(f"{tmp_path}/dict:two+one") == [*saved["two"]["prompt"], *saved["one"]["prompt"]]
    with pytest.raises(ValueError, match=r"no split `train`. Name one of one, two, as .*dict:one"):
        texts(f"{tmp_path}/dict")
    with pytest.raises(ValueError, match="one data set without splits; drop :train"):
        texts(f"{tmp_path}/set:train")


@pytest.mark.parametrize(("name", "text"), [("state.json", "{}"), ("state.json", "{"), ("dataset_dict.json", "[]")])
def test_a_damaged_folder_of_save_to_disk_is_named(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}: not as `save_to_disk` of datasets writes it \("):
        list(read_rows(str(tmp_path)))


def test_json_texts_that_datasets_writes_are_parsed(tmp_path):
    kinds = datasets.Features({"a": datasets.List(datasets.Json())})
    datasets.Dataset.from_dict({"a": [[{"b": None}, {"c": 1}]]}, features=kinds).to_parquet(f"{tmp_path}/j.parquet")
    assert [row.values for row in read_rows(f"{tmp_path}/j.parquet")] == [{"a": [{"b": None}, {"c": 1}]}]


def test_a_table_with_a_text_that_is_not_utf_8(tmp_path):
    texts = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    pyarrow.parquet.write_table(pa.table({"prompt": texts}), tmp_path / "d.parquet")
    first, bad, last = read_rows(f"{tmp_path}/d.parquet")
    assert (first.values, last.values, last.location.line) == ({"prompt": "a"}, {"prompt": "c"}, 3)
    assert "d.parquet:2: a text is not valid ('utf-8' codec can't decode" in str(bad)


def test_parquet_rows_are_found_in_their_row_group(tmp_path):
    table = pa.Table.from_pylist([{"prompt": str(i)} for i in range(1000)])
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet", row_group_size=300)
    (shard,) = open_shards(f"{tmp_path}/d.parquet")
    for start in (0, 299, 300, 301, 555, 999, 1000):
        rows = list(shard.rows((start, 0)))
        assert [int(row.values["prompt"]) for row, _ in rows] == list(range(start, 1000))
        assert [row.location.line for row, _ in rows] == list(range(start + 1, 1001))


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.zst", ".parquet"])
def test_a_row_that_is_too_large_is_left_out_unparsed(tmp_path, monkeypatch, ending):
    for module in (row, json_rows, table_rows):
        monkeypatch.setattr(module, "MAX_ROW_BYTES", 10_000)
    monkeypatch.setattr(json_rows, "_CHUNK", 1000)
    monkeypatch.setattr(json_rows.json, "loads", lambda text: {"prompt": text[12:13]} if len(text) < 20 else 1 / 0)
    path = tmp_path / f"d{ending}"
    values = [{"prompt": "a"}, {"prompt": "b" * 12_000}, {"prompt": "c"}]
    if ending == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(values), path)
    else:
        data = "".join(json.dumps(row) + "\n" for row in values).encode()
        path.write_bytes(pa.compress(data, codec="zstd", asbytes=True) if ending.endswith("zst") else data)
    first, bad, last = read_rows(str(path))
    assert (first.values["prompt"], last.values["prompt"], last.location.line) == ("a", "c", 3)
    assert re.match(re.escape(f"{path}:2: the row has ") + r"12,0\d\d bytes, above the limit of 10,000\.", str(bad))
    (shard,) = open_shards(str(path))
    behind = [position for _, position in shard.rows()][1]
    assert [row for row, _ in shard.rows(wanted=lambda: False)] == [None] * 3
    assert [row.values for row, _ in shard.rows(behind)] == [{"prompt": "c"}]


def test_a_list_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(json_rows, "_CHUNK", 7)
    values = [{"prompt": f"ü, ] [ {i}", "more": {"n": [i]}} for i in range(30)]
    for indent in (None, 2):
        (tmp_path / "d.json").write_text(json.dumps(values, indent=indent) + "\n")
        assert [row.values for row in read_rows(f"{tmp_path}/d.json")] == values
    (tmp_path / "d.json").write_text("[ ]\n")
    assert not list(read_rows(f"{tmp_path}/d.json"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}, {"a" 2}]', "behind row 1 \\(row 2 of the list is not valid JSON: Expecting ':'"),
        ('[{"a": 1}, {"a": 2}', "behind row 1 \\(row 2 of the list is not valid JSON: Expecting ',' or '\\]'"),
        ('[{"a": 1} {"a": 2}]', "cannot be read as JSON \\(row 1 of the list is not valid JSON: Expecting ','"),
        ('[{"a": 1}] [', "behind row 1 \\(text follows the end of the list"),
        ("[", "cannot be read as JSON \\(row 1 of the list"),
        (
            '[{"a": 1}, {"a": ' + "9" * 5000 + "}]",
            "behind row 1 \\(row 2 of the list is not valid JSON: Exceeds the limit",
        ),
        ('[{"a": ' + "[" * 99_999, "cannot be read as JSON \\(row 1 of the list is not valid JSON: maximum recursion"),
    ],
)
def test_a_broken_list_is_named(tmp_path, text, message):
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        list(read_rows(f"{tmp_path}/d.json"))


@pytest.mark.parametrize("chunk", [7, 10, 64])
@pytest.mark.parametrize(
    "large", ["b" * 1000, 'ü, "] } \\\\ \n' * 90, [{"n": [1.5e-7, -2]}] * 90, list(range(400)), "ü" * 80]
)
def test_an_item_of_a_list_that_is_too_large_is_a_bad_row(tmp_path, monkeypatch, large, chunk):
    for module in (row, json_rows):
        monkeypatch.setattr(module, "MAX_ROW_BYTES", 100)
    monkeypatch.setattr(json_rows, "_CHUNK", chunk)
    path = tmp_path / "d.json"
    item = json.dumps({"a": large}, ensure_ascii=False)
    path.write_text(f'[{{"a": 1}}, {item} , {{"a": 2}}, {item}]')
    first, bad, last, bad_end = read_rows(str(path))
    assert (first.values, last.values, last.location.line) == ({"a": 1}, {"a": 2}, 3)
    assert [bad.line, bad_end.line] == [2, 4]
    size = len(item.encode())
    assert re.search(rf"the row has ({size:,}|{size + 1:,}) bytes, above the limit of 100\.", str(bad))
    assert f"the row has {size:,} bytes" in str(bad_end)
    (shard,) = open_shards(str(path))
    behind = [position for _, position in shard.rows()][1]
    assert [row.values for row, _ in shard.rows(behind) if not isinstance(row, BadRow)] == [{"a": 2}]


def test_a_list_whose_large_item_is_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 100)
    monkeypatch.setattr(json_rows, "_CHUNK", 10)
    for text, message in [
        ('{"a": "' + "b" * 500, "row 2 of the list has no end"),
        ('{"a" 5, "b": "' + "b" * 500 + '"}]', "row 2 of the list is not valid JSON: Expecting ':' delimiter"),
    ]:
        (tmp_path / "d.json").write_text('[{"a": 1}, ' + text)
        with pytest.raises(ValueError, match=rf"behind row 1 \({message}"):
            list(read_rows(f"{tmp_path}/d.json"))


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_columns_of_one_name_are_refused(tmp_path, ending):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], ["prompt", "chosen", "chosen"])
    path = tmp_path / f"d.{ending}"
    if ending == "parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(ValueError, match=r"d\.(parquet|arrow): .* \(more than one column is called chosen\)"):
        list(read_rows(str(path)))


def test_items_of_a_list_that_are_no_rows_are_bad_rows(tmp_path):
    (tmp_path / "d.json").write_text('[{"a": 1}, 7, {"a": 2}]')
    good, number, last = read_rows(f"{tmp_path}/d.json")
    assert (good.values, last.values, last.location.line) == ({"a": 1}, {"a": 2}, 3)
    assert "d.json:2: a JSON int, not an object" in str(number)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\0" * 8, "the line holds NUL bytes \\(0x00\\)"),
        ('{"a": 1}'.encode("utf-16"), "the line holds NUL bytes .* or one in UTF-16"),
        (b'{"a": ' + b"[" * 100_000, "values are nested in one another more than 100 times"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "not valid JSON \\(Exceeds the limit"),
    ],
)
def test_lines_that_are_no_rows(tmp_path, line, reason):
    (tmp_path / "d.jsonl").write_bytes(b'{"a": 1}\n' + line + b'\n{"a": "\\ud83d\\ude00"}\n')
    good, bad, last = read_rows(f"{tmp_path}/d.jsonl")
    assert (good.values, last.values, last.location.line) == ({"a": 1}, {"a": "\U0001f600"}, 3)
    assert isinstance(bad, BadRow)
    assert bad.line == 2
    assert re.match(reason, bad.reason)


def test_hub_splits_and_folders(monkeypatch):
    asked = []

    def load_dataset(name, split, streaming, **options):
        asked.append((name, split, streaming, options))
        dataset = datasets.Dataset.from_list([{"prompt": f"{split} {i}"} for i in range(3)])
        return dataset.to_iterable_dataset(num_shards=3) if streaming else dataset

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert texts("owner/name@harmless:train+test") == [f"{split} {i}" for split in ("train", "test") for i in range(3)]
    assert asked == [("owner/name", split, False, {"data_dir": "harmless"}) for split in ("train", "test")]
    shards = open_shards("owner/name:a+b", streaming=True)
    assert len(shards) == 6
    rows = [row for shard in shards for row, _ in shard.rows()]
    assert [row.values["prompt"] for row in rows] == texts("owner/name:a+b")
    assert (rows[-1].location.file, rows[-1].location.line) == ("owner/name:b (file 3 of 3)", 1)


@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
def test_arrow_that_unpacks_within_bounds_is_read(tmp_path, compression, new):
    table = pa.table({"prompt": ["a" * 1000] * 300})
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.OSFile(f"{tmp_path}/d.arrow", "wb") as file, new(file, table.schema, options=options) as writer:
        writer.write_table(table)
    assert texts(f"{tmp_path}/d.arrow") == ["a" * 1000] * 300


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
def test_arrow_that_unpacks_to_too_much_is_refused(tmp_path, new, monkeypatch):
    monkeypatch.setattr("megatron_lpc.data.arrow_bounds.MAX_BATCH_BYTES", 2**20)
    table = pa.table({"prompt": ["a" * 2**20] * 3})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(f"{tmp_path}/d.arrow", "wb") as file, new(file, table.schema, options=options) as writer:
        writer.write_table(table)
    with pytest.raises(ValueError, match=r"d\.arrow: cannot be read as Arrow \(message \d unpacks to 3,\d+,\d+ bytes"):
        list(read_rows(f"{tmp_path}/d.arrow"))


def test_arrow_with_offsets_beyond_its_texts_is_refused(tmp_path):
    path = tmp_path / "d.arrow"
    table = pa.table({"prompt": ["abc"] * 3})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    offsets = np.array([0, 3, 6, 9], "<i4").tobytes()
    assert path.read_bytes().count(offsets) == 1
    path.write_bytes(path.read_bytes().replace(offsets, np.array([0, 3, 10**8, 9], "<i4").tobytes()))
    with pytest.raises(ValueError, match=r"d\.arrow: cannot be read as Arrow"):
        list(read_rows(str(path)))


def test_a_text_that_a_dictionary_repeats_is_read_a_few_rows_at_a_time(tmp_path):
    import pyarrow.parquet as parquet

    from megatron_lpc.data.table_rows import _rows_per_batch

    same = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array(["a" * 7_000_000]))
    for name, column in (("bomb", same), ("usual", ["a", "b"] * 2500)):
        parquet.write_table(pa.table({"prompt": column}), tmp_path / name, compression="zstd", store_schema=False)
    with parquet.ParquetFile(tmp_path / "bomb") as bomb, parquet.ParquetFile(tmp_path / "usual") as usual:
        assert _rows_per_batch(bomb.metadata.row_group(0)) < 64
        assert _rows_per_batch(usual.metadata.row_group(0)) == 256


@pytest.mark.parametrize("name", ["../outside.arrow", "/etc/passwd", "", None, 3])
def test_a_saved_data_set_names_files_of_its_folder(tmp_path, name):
    datasets.Dataset.from_list([{"prompt": "a"}]).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "data-00000-of-00001.arrow").rename(tmp_path / "outside.arrow")
    (tmp_path / "saved" / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(ValueError, match=r"state\.json"):
        list(read_rows(str(tmp_path / "saved")))
