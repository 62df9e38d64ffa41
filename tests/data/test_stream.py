import gzip
import json
from itertools import islice
from pathlib import Path

import datasets
import pytest

from megatron_lpc.data.cache import build_dataset
from megatron_lpc.data.loader import StreamLoader, pairs_in_flight
from megatron_lpc.data.micro_batches import MicroBatchPlanner
from megatron_lpc.data.row_reader import RowReader, check_reader_state
from megatron_lpc.data.source import BadRow, read_rows
from megatron_lpc.data.stream import PairStream
from megatron_lpc.data.tokenizer import load_tokenizer


@pytest.fixture
def stream(config, tmp_path, write_jsonl):
    """Makes streams of 23 numbered rows in two files; what a pair is can be told by its prompt."""
    rows = [{"prompt": f"the cat {i}", "chosen": f"sat on {i}", "rejected": "ran"} for i in range(23)]
    files = [write_jsonl(tmp_path / "one.jsonl", rows[:10]), write_jsonl(tmp_path / "two.jsonl", rows[10:])]

    def make(train_data=files, **options):
        ranks = {
            name: options.pop(name)
            for name in ("dp_rank", "dp_size", "max_ahead", "records_bad_rows")
            if name in options
        }
        settings = config(train_data=train_data, streaming=True, **({"shuffle_buffer_size": 4} | options))
        return PairStream(settings, load_tokenizer(settings), **ranks)

    make.config = config
    make.tokenizer = load_tokenizer(config())
    make.dataset = build_dataset(config(), make.tokenizer, files, "train")
    return make


def numbers(tokenizer, pairs):
    return [int(tokenizer.decode(list(map(int, pair.prompt))).split()[-1]) for pair in pairs]


def test_an_epoch_holds_every_pair_once_with_its_tokens(stream):
    pairs = list(islice(stream().pairs(3), 23))
    seen = numbers(stream.tokenizer, pairs)
    # The last block goes on with the next epoch: 20 pairs are of the first in any case.
    assert len(set(seen[:20])) == 20
    for number, pair in zip(seen, pairs, strict=True):
        expected = stream.dataset[number]
        assert [list(x) for x in (pair.prompt, pair.chosen, pair.rejected)] == [
            x.tolist() for x in (expected.prompt, expected.chosen, expected.rejected)
        ]
    assert sorted(numbers(stream.tokenizer, islice(stream(shuffle_buffer_size=23).pairs(3), 23))) == list(range(23))


def test_pairs_are_shuffled_within_a_bounded_buffer(stream):
    assert numbers(stream.tokenizer, islice(stream(shuffle_buffer_size=1).pairs(3), 46)) == [*range(23), *range(23)]
    seen = numbers(stream.tokenizer, islice(stream().pairs(3), 20))
    assert seen != sorted(seen)
    assert [sorted(seen[start : start + 4]) for start in range(0, 20, 4)] == [
        list(range(start, start + 4)) for start in range(0, 20, 4)
    ]


def test_the_order_depends_on_the_seed(stream):
    one = numbers(stream.tokenizer, islice(stream().pairs(3), 20))
    assert numbers(stream.tokenizer, islice(stream().pairs(3), 20)) == one
    assert numbers(stream.tokenizer, islice(stream().pairs(4), 20)) != one


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_share_the_rows(stream, size):
    seen = [
        numbers(stream.tokenizer, islice(stream(dp_rank=rank, dp_size=size, shuffle_buffer_size=1).pairs(3), 7))
        for rank in range(size)
    ]
    assert not set(seen[0]) & set(seen[1])
    if size == 3:  # Two files for three ranks: rows are dealt out one by one, file by file.
        assert seen[0] == [0, 3, 6, 9, 10, 13, 16]


@pytest.mark.parametrize("consumed", [0, 1, 4, 7, 18, 23, 40, 101])
@pytest.mark.parametrize("buffer", [1, 4, 50])
def test_resume_is_exact(stream, consumed, buffer):
    straight = stream(shuffle_buffer_size=buffer, max_ahead=5)
    pairs = straight.pairs(3)
    before = list(islice(pairs, consumed + 3))  # Read ahead of what is asked for.
    position = json.loads(json.dumps(straight.position(consumed)))
    expected = numbers(stream.tokenizer, [*before[consumed:], *islice(pairs, 30)])
    resumed = stream(shuffle_buffer_size=buffer).pairs(3, consumed, position)
    assert numbers(stream.tokenizer, islice(resumed, 33)) == expected


def test_a_position_of_an_earlier_version_is_refused(stream):
    one = stream()
    next(one.pairs(3))
    check_reader_state(json.loads(json.dumps(one.position(0))))
    with pytest.raises(ValueError, match="--load: the checkpoint is of an earlier version"):
        check_reader_state({"source": 0, "rows": 2, "dataset": {}})


def test_what_is_held_is_bounded(stream):
    one = stream(shuffle_buffer_size=2, max_ahead=6)
    list(islice(one.pairs(3), 200))
    assert len(one._block_starts) == 2 + 3 + 1


def test_the_position_is_known_as_soon_as_the_pairs_before_it_are_given(stream):
    one = stream()
    taken = list(islice(one.pairs(3), 8))
    assert len(taken) == 8
    assert one.position(8)["rows"] == 8


def test_bad_rows(stream, config, tmp_path, write_jsonl, caplog):
    good = {"prompt": "the cat", "chosen": "sat", "rejected": "ran"}
    file = write_jsonl(tmp_path / "bad.jsonl", [good, good, good | {"chosen": ""}, good])
    with pytest.raises(BadRow, match=r"bad\.jsonl:3: the chosen response is empty"):
        list(islice(stream([file]).pairs(3), 8))
    with pytest.raises(BadRow, match=r"bad\.jsonl:3: the chosen"):
        list(islice(stream([file], dp_rank=0, dp_size=2, shuffle_buffer_size=1).pairs(3), 8))
    one = stream([file], bad_rows="skip")
    assert len(list(islice(one.pairs(3), 4))) == 4
    (record,) = [
        json.loads(line) for line in (tmp_path / "cache" / "streamed_bad_rows_0.jsonl").read_text().splitlines()[:1]
    ]
    assert (record["line"], record["reason"]) == (3, "the chosen response is empty")
    assert "left out" in caplog.text
    list(islice(stream([file], bad_rows="skip", dp_rank=1, dp_size=2, records_bad_rows=False).pairs(3), 4))
    assert not (tmp_path / "cache" / "streamed_bad_rows_1.jsonl").exists()


def test_a_stream_without_a_usable_row_is_given_up(stream, tmp_path, write_jsonl, monkeypatch):
    monkeypatch.setattr("megatron_lpc.data.stream._MAX_CONSECUTIVE_BAD_ROWS", 7)
    file = write_jsonl(tmp_path / "bad.jsonl", [{"prompt": "a", "chosen": "", "rejected": "b"}])
    with pytest.raises(
        ValueError, match=r"7 rows in succession cannot be used; the last: .*bad\.jsonl:1: the chosen response is empty"
    ):
        next(stream([file], bad_rows="skip").pairs(3))


def test_broken_lines_are_bad_rows_and_broken_files_are_named(stream, tmp_path):
    good = b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
    path = tmp_path / "broken.jsonl"
    path.write_bytes(good + b'{"prompt": \n' + good)
    with pytest.raises(BadRow, match=r"broken\.jsonl:2: not valid JSON"):
        list(islice(stream([str(path)]).pairs(3), 4))
    assert len(list(islice(stream([str(path)], bad_rows="skip").pairs(3), 4))) == 4
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(good * 10)[:-4])
    with pytest.raises(ValueError, match=r"cut\.jsonl\.gz: cannot be read as JSON behind row 10"):
        list(islice(stream([str(tmp_path / "cut.jsonl.gz")]).pairs(3), 20))
    with pytest.raises(FileNotFoundError, match=r"absent\.jsonl: no such data file"):
        next(stream([str(tmp_path / "absent.jsonl")]).pairs(3))


def test_a_share_without_rows_is_named(stream, tmp_path, write_jsonl):
    file = write_jsonl(tmp_path / "one.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    with pytest.raises(ValueError, match=r"one\.jsonl: no rows for data parallel rank 1 of 2\. Give more rows"):
        next(stream([file], dp_rank=1, dp_size=2).pairs(3))


def test_a_hub_data_set_is_streamed(monkeypatch):
    asked = []

    def load_dataset(name, split, streaming):
        asked.append((name, split, streaming))
        return datasets.Dataset.from_dict({"prompt": ["a", "b"]}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = list(islice(iter(RowReader(["owner/name:test"], 0, 1)), 3))
    assert [(row.location.line, row.values["prompt"]) for row in rows] == [(1, "a"), (2, "b"), (1, "a")]
    assert asked[0] == ("owner/name", "test", True)


@pytest.mark.parametrize(
    "layout", [{"micro_batch_size": 2}, {"micro_batch_size": 4, "pack_to": 200, "share_prompt": True}]
)
def test_steps_of_ranks_and_their_resume(stream, layout):
    def loader(rank, size, start=None):
        return StreamLoader(
            stream=stream(dp_rank=rank, dp_size=size, max_ahead=pairs_in_flight(8, size)),
            planner=MicroBatchPlanner(pad_id=0, **layout),
            global_batch_size=8,
            dp_rank=rank,
            dp_size=size,
            start=start,
        )

    for size in (1, 2):
        loaders = [loader(rank, size) for rank in range(size)]
        streams = [one.training(3) for one in loaders]
        straight = [list(islice(steps, 3)) for steps in streams]
        positions = [one.position(24) for one in loaders]
        straight = [[*rank, *islice(steps, 2)] for rank, steps in zip(straight, streams, strict=True)]
        for step in range(5):
            ids = sorted(i for rank in straight for batch in rank[step] for i in batch.sample_ids.tolist())
            assert ids == list(range(8 * step, 8 * step + 8))
        for rank, position in enumerate(positions):
            resumed = list(islice(loader(rank, size, position).training(3, 24), 2))
            for ours, theirs in zip(straight[rank][3:], resumed, strict=True):
                assert all(
                    a.tokens.equal(b.tokens) and a.sample_ids.equal(b.sample_ids)
                    for a, b in zip(ours, theirs, strict=True)
                )


CASES = sorted((Path(__file__).parent / "cases").iterdir())


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.name)
def test_a_stream_has_the_rows_that_are_read_otherwise(path, size):
    """Missing keys stay missing, dates stay text, broken lines are bad rows, on one rank and on several."""
    expected = [vars(row) for row in read_rows(str(path))]
    readers = [iter(RowReader([str(path)], rank, size)) for rank in range(min(size, len(expected)))]
    assert [vars(next(readers[index % size])) for index in range(len(expected))] == expected


def test_dates_and_missing_keys_give_the_same_pairs_streamed(stream):
    files = [str(path) for path in CASES if path.stem in ("dates", "mixed", "noprompt_some", "nulraw")]
    options = {"bad_rows": "skip", "chat_template": str(Path(__file__).parent / "templates" / "smollm2.jinja")}
    settings = stream.config(train_data=files, **options)
    dataset = build_dataset(settings, load_tokenizer(settings), files, "train")
    streamed = islice(stream(files, shuffle_buffer_size=1, **options).pairs(3), len(dataset))
    for index, pair in enumerate(streamed):
        ours = [list(pair.prompt), list(pair.chosen), list(pair.rejected)]
        assert ours == [tokens.tolist() for tokens in vars(dataset[index]).values() if tokens is not None]
