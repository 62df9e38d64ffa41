import gc
import json
import logging
import multiprocessing
import os
import weakref
from multiprocessing.reduction import ForkingPickler

import datasets
import pytest
import torch

from megatron_lpc.data import parallel_encoding, row_chunks, tokenization
from megatron_lpc.data.encode import encode_pair
from megatron_lpc.data.parallel_encoding import encoded_chunks
from megatron_lpc.data.row_chunks import RowChunks, RowEncoder
from megatron_lpc.data.source import Location, Row
from megatron_lpc.data.tokenization import encode_rows
from megatron_lpc.data.tokenizer import load_tokenizer


@pytest.fixture
def encode(config, tmp_path, write_jsonl, rows):
    """Encodes ten good rows, after each of which stands a bad one."""
    source = write_jsonl(tmp_path / "pairs.jsonl", [row for good in rows for row in (good, {"chosen": "", "n": 1})])
    encoder = RowEncoder(load_tokenizer(config()), config(group_column="annotator"))
    return lambda num_workers, rows_per_chunk=3: encode_rows(
        RowChunks((source,), rows_per_chunk=rows_per_chunk), encoder, num_workers
    )


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
    monkeypatch.setattr(parallel_encoding, "START_METHOD", "fork")
    chunks = encode(2)
    next(chunks)
    for process in multiprocessing.active_children():
        process.kill()
    with pytest.raises(ChildProcessError, match="lower --num-workers"):
        list(chunks)


def test_an_error_of_a_process_is_what_one_process_raises(config, tmp_path, rows, monkeypatch):
    monkeypatch.setattr(parallel_encoding, "START_METHOD", "fork")
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(rows[:5])[:-1] + ", oh]")
    chat = tmp_path / "chat.jsonl"
    turns = {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    chat.write_text("".join(json.dumps(row) + "\n" for row in [*rows[:5], {"prompt": "who?"} | turns]))
    encoder = RowEncoder(load_tokenizer(config()), config())
    for source, kind in ((broken, ValueError), (chat, LookupError)):
        found = []
        for num_workers in (1, 2):
            chunks = encode_rows(RowChunks((str(source),), rows_per_chunk=2), encoder, num_workers)
            found.append([len(next(chunks).pairs) for _ in range(2)])
            with pytest.raises(kind) as error:
                next(chunks)
            found[-1].append(str(error.value))
        assert found[0] == found[1]
        assert found[0][:2] == [2, 2]
        assert "DataLoader" not in found[0][2]


def test_what_a_process_is_sent_fits_into_a_pipe():
    large = RowEncoder(os.urandom(2**20), None)
    assert len(ForkingPickler.dumps(encoded_chunks(RowChunks(("d.jsonl",)), large, 2))) < 2**14


def test_what_all_processes_warn_of_is_said_once(encode, monkeypatch, caplog):
    def warn_and_encode(*arguments):
        logging.getLogger("megatron_lpc.data").warning("%d pairs later", 1)
        return encode_pair(*arguments)

    monkeypatch.setattr(parallel_encoding, "START_METHOD", "fork")
    monkeypatch.setattr(row_chunks, "encode_pair", warn_and_encode)
    list(encode(2))
    assert [record.getMessage() for record in caplog.records] == ["1 pairs later"]


def test_chunks_behind_the_first_ones(encode, tmp_path):
    chunks = RowChunks((str(tmp_path / "pairs.jsonl"),), first=5, rows_per_chunk=3)
    assert _lines(chunks) == [[16, 17, 18], [19, 20]]
    chunks = RowChunks(chunks.sources, first=1, rows_per_chunk=3)
    shares = [_lines(share) for share in chunks.shares(4)]
    assert shares == [[[4, 5, 6], [16, 17, 18]], [[7, 8, 9], [19, 20]], [[10, 11, 12]], [[13, 14, 15]]]
    assert _lines(chunks.shares(4)[1].shares(2)[1]) == [[19, 20]]


def _lines(chunks):
    return [[row.location.line for row in chunk] for chunk in chunks]


def test_processes_write_nothing_into_the_cache_of_datasets(encode, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel_encoding, "START_METHOD", "fork")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert len(list(encode(2))) == 7
    assert not (tmp_path / "cache").exists()


def test_processes_leave_the_random_numbers_of_this_one_alone(encode, monkeypatch):
    monkeypatch.setattr(parallel_encoding, "START_METHOD", "fork")
    before = torch.get_rng_state()
    list(encode(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_bad_row_keeps_no_other_row_in_memory(config, rows):
    chunk = [Row(Location("pairs.jsonl", 1), rows[0]), Row(Location("pairs.jsonl", 2), {"chosen": ""})]
    alive = weakref.ref(chunk[0])
    encoded = RowEncoder(load_tokenizer(config()), config())(chunk)
    del chunk
    gc.collect()
    assert [bad.line for bad in encoded.bad_rows] == [2]
    assert alive() is None


def test_a_single_chunk_starts_no_process(encode, monkeypatch):
    monkeypatch.setattr(tokenization, "encode_in_processes", None)
    assert [len(chunk.pairs) for chunk in encode(2, rows_per_chunk=20)] == [10]
