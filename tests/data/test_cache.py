import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from megatron_lpc.data import cache, row_chunks, shards
from megatron_lpc.data.cache import build_dataset
from megatron_lpc.data.encode import encode_pair
from megatron_lpc.data.pairs import to_pair
from megatron_lpc.data.row_chunks import RowChunks
from megatron_lpc.data.source import BadRow, read_rows
from megatron_lpc.data.tokenizer import load_tokenizer

HH = Path(__file__).parents[3] / "shared" / "data" / "hh-harmless-1800.jsonl.gz"


@pytest.fixture
def source(tmp_path, write_jsonl, rows):
    return write_jsonl(tmp_path / "pairs.jsonl", rows)


@pytest.fixture
def bad_source(tmp_path, write_jsonl, rows):
    path = Path(write_jsonl(tmp_path / "bad.jsonl", [rows[0], {"prompt": "p"}, rows[1] | {"chosen": ""}, rows[2]]))
    path.write_text(path.read_text() + "{broken\n")
    return str(path)


@pytest.fixture
def builds(monkeypatch):
    """Every row that is tokenized."""
    rows = []

    def spy(pair, tokenizer, config):
        rows.append(pair.location.line)
        return encode_pair(pair, tokenizer, config)

    monkeypatch.setattr(row_chunks, "encode_pair", spy)
    return rows


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of 2 chunks of 3 rows."""
    monkeypatch.setattr(cache, "RowChunks", partial(RowChunks, rows_per_chunk=3))
    monkeypatch.setattr(shards, "CHUNKS_PER_SHARD", 2)


def build(config, *sources):
    return build_dataset(config, load_tokenizer(config), sources, "train")


def folders(config):
    """What is in the cache but for the locks."""
    return [path for path in Path(config.data_cache_path).iterdir() if path.suffix != ".lock"]


def as_lists(pair):
    return [list(pair.prompt), list(pair.chosen), list(pair.rejected), pair.group]


def test_the_cache_holds_every_pair_in_order(config, source, small_shards):
    options = config(group_column="annotator", num_workers=1)
    dataset = build(options, source, source)
    tokenizer = load_tokenizer(options)
    expected = [as_lists(encode_pair(to_pair(row, options), tokenizer, options)) for row in read_rows(source)]
    assert [as_lists(dataset[i]) for i in range(len(dataset))] == expected * 2
    assert dataset.groups == [str(i % 2) for i in range(10)] * 2
    assert dataset.lengths.tolist() == [list(dataset[i].lengths) for i in range(20)]
    assert len(list(dataset.folder.glob("pairs-*.arrow"))) == 4
    assert not dataset[0].prompt.flags.owndata  # a view of the file, not a copy
    for example_index in (-1, 20):
        with pytest.raises(IndexError, match=f"example index {example_index} of a data set of 20 pairs"):
            dataset[example_index]


def test_groups_are_none_without_a_group_column(config, source):
    assert set(build(config(), source).groups) == {None}


def test_the_cache_is_used_again(config, source, builds):
    first = build(config(), source)
    again = build(config(bad_rows="skip", num_workers=2), source)
    assert len(builds) == 10
    assert again.fingerprint == first.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 100},
        {"max_prompt_length": 100},
        {"truncation_mode": "keep_start"},
        {"group_column": "annotator"},
        {"data_format": "openrlhf"},
        {"chosen_column": "rejected", "rejected_column": "chosen"},
        {"chat_template": "template"},
        {"tokenizer_model": "hf"},
        "data",
        "version",
    ],
)
def test_the_cache_is_rebuilt_after_a_change(
    config, source, builds, change, template_file, hf_folder, monkeypatch, write_jsonl, rows
):
    first = build(config(), source)
    options = dict(change) if isinstance(change, dict) else {}
    if "chat_template" in options:
        options["chat_template"] = template_file
    if "tokenizer_model" in options:
        options["tokenizer_model"] = hf_folder
    if change == "data":
        write_jsonl(Path(source), rows[::-1])
    if change == "version":
        monkeypatch.setattr(cache, "CACHE_VERSION", cache.CACHE_VERSION + 1)
    assert build(config(**options), source).fingerprint != first.fingerprint
    assert len(builds) == 20


def test_stop_at_the_first_bad_row(config, bad_source):
    with pytest.raises(BadRow, match=r"bad.jsonl:2: column `chosen` is missing"):
        build(config(), bad_source)
    assert folders(config()) == []


def test_skip_counts_reports_and_records_bad_rows(config, bad_source, caplog):
    for _ in range(2):  # built, then found
        caplog.clear()
        dataset = build(config(bad_rows="skip"), bad_source)
        assert (len(dataset), dataset.num_bad_rows) == (2, 3)
        assert f"left out 3 unusable rows, see {dataset.bad_rows_file}" in caplog.text
    recorded = [json.loads(line) for line in dataset.bad_rows_file.read_text().splitlines()]
    assert [(bad["file"], bad["line"]) for bad in recorded] == [(bad_source, 2), (bad_source, 3), (bad_source, 5)]
    assert recorded[1]["reason"] == "the chosen response is empty"


def test_stop_is_honoured_by_a_cache_built_under_skip(config, bad_source):
    build(config(bad_rows="skip"), bad_source)
    with pytest.raises(BadRow, match=r"bad.jsonl:2: column `chosen` is missing"):
        build(config(bad_rows="stop"), bad_source)


def test_nothing_usable(config, tmp_path, write_jsonl):
    empty = write_jsonl(tmp_path / "empty.jsonl", [])
    with pytest.raises(ValueError, match=r"data set `train` \(.*empty.jsonl\) holds no usable row\.$"):
        build(config(), empty)
    bad = write_jsonl(tmp_path / "bad.jsonl", [{}])
    with pytest.raises(
        ValueError, match=r"holds no usable row. The first of 1 bad rows: .*bad.jsonl:1: column `chosen`"
    ):
        build(config(bad_rows="skip"), bad)
    with pytest.raises(ValueError, match="no files for data set `train`"):
        build(config())


def test_a_missing_chat_template_is_not_a_bad_row(config, tmp_path, write_jsonl):
    turns = {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    source = write_jsonl(tmp_path / "chat.jsonl", [{"prompt": "who?"} | turns])
    with pytest.raises(LookupError, match="no chat template"):
        build(config(bad_rows="skip"), source)


def test_an_interrupted_build_goes_on(config, source, tmp_path, sentencepiece_file, builds, small_shards, caplog):
    code = f"""
import os
from functools import partial
from megatron_lpc.config.schema import DataConfig
from megatron_lpc.data import cache, parallel_encoding, shards
from megatron_lpc.data.tokenizer import load_tokenizer
cache.RowChunks, shards.CHUNKS_PER_SHARD = partial(cache.RowChunks, rows_per_chunk=3), 2
parallel_encoding.START_METHOD = "fork"  # which is faster
inner = shards._write_shard
shards._write_shard = lambda folder, number, rows: os._exit(9) if number == 1 else inner(folder, number, rows)
config = DataConfig(tokenizer_model={sentencepiece_file!r}, data_cache_path={str(tmp_path / "cache")!r}, num_workers=2)
cache.build_dataset(config, load_tokenizer(config), [{source!r}], "train")
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # Its output ends when its last process has: those that it started do not outlive it.
    killed = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=False, stdout=subprocess.PIPE, timeout=300
    )
    assert killed.returncode == 9
    (left,) = folders(config())
    assert left.name.startswith(".building-")
    resumed = build(config(num_workers=1), source)
    assert builds == [7, 8, 9, 10], "6 rows are in the first shard"
    assert "going on after 1 shards" in caplog.text
    assert folders(config()) == [resumed.folder]
    uninterrupted = build(config(data_cache_path=str(tmp_path / "other"), num_workers=1), source)
    for file in uninterrupted.folder.glob("*.[ab]*"):
        assert file.read_bytes() == (resumed.folder / file.name).read_bytes()
    assert {path.name for path in resumed.folder.iterdir()} == {path.name for path in uninterrupted.folder.iterdir()}


def test_a_build_that_is_stopped_by_a_bad_row_goes_on_when_rows_are_skipped(
    config, tmp_path, write_jsonl, rows, builds, small_shards
):
    source = write_jsonl(tmp_path / "bad.jsonl", [*rows[:4], {}, *rows[4:8], {}, *rows[8:]])
    stop, skip = config(num_workers=1), config(num_workers=1, bad_rows="skip")
    with pytest.raises(BadRow, match=r"bad.jsonl:5: column"):
        build(stop, source)
    assert folders(stop) == []
    builds.clear()
    dataset = build(skip, source)
    assert len(builds) == len(dataset) == 10
    assert [json.loads(line)["line"] for line in dataset.bad_rows_file.read_text().splitlines()] == [5, 10]
    assert not list(dataset.folder.glob("bad_rows-*"))


def test_several_may_build_at_once(config, source, builds):
    with ThreadPoolExecutor(4) as pool:
        datasets = list(pool.map(lambda _: build(config(), source), range(4)))
    assert [len(dataset) for dataset in datasets] == [10] * 4
    assert folders(config()) == [datasets[0].folder]
    assert len(builds) == 10, "one of them has"


def test_a_cache_that_cannot_be_put_in_place_is_an_error(config, source, monkeypatch):
    def refuse(self, target):
        raise PermissionError(f"no writing to {target}")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError, match="no writing"):
        build(config(), source)


def test_a_damaged_cache_is_refused(config, source):
    build(config(), source)
    (folder,) = folders(config())
    for name in ("pairs-00000.arrow", "lengths.bin", "batch_ends.bin"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-20])
        with pytest.raises(ValueError, match=r"data cache .* Delete the folder"):
            build(config(), source)
        (folder / name).write_bytes(whole)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"rows": 9}))
    with pytest.raises(ValueError, match=r"does not fit its summary\.json\. Delete the folder"):
        build(config(), source)


@pytest.mark.skipif(not HH.exists(), reason=f"{HH.name} is not beside the repository")
def test_real_transcripts(config):
    options = config(bad_rows="skip", max_length=4096)
    dataset = build(options, str(HH))
    assert len(dataset) + dataset.num_bad_rows == 1800
    assert {json.loads(line)["reason"] for line in dataset.bad_rows_file.read_text().splitlines()} == {
        "the chosen response is empty"
    }
    tokenizer = load_tokenizer(options)
    lines = [row.values for row in read_rows(str(HH))]
    for number in (0, 1, 50):  # before the first bad row, pairs and lines agree
        prompt, chosen, rejected = (tokenizer.decode(list(ids)) for ids in as_lists(dataset[number])[:3])
        assert prompt.endswith("\n\nAssistant:")
        assert (prompt + chosen, prompt + rejected) == (lines[number]["chosen"], lines[number]["rejected"])
