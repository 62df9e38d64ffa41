import gc
import multiprocessing
import weakref

import pytest

from megatron_lpc.data import tokenization
from megatron_lpc.data.source import Location, Row, read_rows
from megatron_lpc.data.tokenization import RowEncoder, encode_rows
from megatron_lpc.data.tokenizer import load_tokenizer


@pytest.fixture
def encode(config, tmp_path, write_jsonl, rows, monkeypatch):
    """Encodes ten good rows, after each of which stands a bad one, by chunks of 3 rows."""
    monkeypatch.setattr(tokenization, "ROWS_PER_CHUNK", 3)
    source = write_jsonl(tmp_path / "pairs.jsonl", [row for good in rows for row in (good, {"chosen": "", "n": 1})])
    encoder = RowEncoder(load_tokenizer(config()), config(group_column="annotator"))
    return lambda num_workers: encode_rows(read_rows(source), encoder, num_workers)


def test_processes_give_what_one_gives(encode):
    alone, together = list(encode(1)), list(encode(2))
    assert [len(chunk.pairs) for chunk in alone] == [2, 1, 2, 1, 2, 1, 1]
    assert all(one.pairs.equals(two.pairs) for one, two in zip(alone, together, strict=True))
    lines = [[(bad.line, str(bad)) for bad in chunk.bad_rows] for chunk in together]
    assert lines == [[(bad.line, str(bad)) for bad in chunk.bad_rows] for chunk in alone]
    assert [line for chunk in lines for line, _ in chunk] == list(range(2, 21, 2))
    assert not multiprocessing.active_children()


def test_a_killed_process_is_an_error(encode, monkeypatch):
    # Forked, for that is faster.
    monkeypatch.setattr(tokenization, "get_context", lambda _: multiprocessing.get_context("fork"))
    chunks = encode(2)
    next(chunks)
    for process in multiprocessing.active_children():
        process.kill()
    with pytest.raises(ChildProcessError, match="lower --num-workers"):
        list(chunks)


def test_a_bad_row_keeps_no_other_row_in_memory(config, rows):
    chunk = [Row(Location("pairs.jsonl", 1), rows[0]), Row(Location("pairs.jsonl", 2), {"chosen": ""})]
    alive = weakref.ref(chunk[0])
    encoded = RowEncoder(load_tokenizer(config()), config())(chunk)
    del chunk
    gc.collect()
    assert [bad.line for bad in encoded.bad_rows] == [2]
    assert alive() is None


def test_a_single_chunk_starts_no_process(encode, monkeypatch):
    monkeypatch.setattr(tokenization, "ROWS_PER_CHUNK", 20)
    monkeypatch.setattr(tokenization, "ProcessPoolExecutor", None)
    assert [len(chunk.pairs) for chunk in encode(2)] == [10]
