"""Hidden states on disk: what is written is read, and nothing else is taken for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_lpc.data import hidden_store
from megatron_lpc.data.distinct_responses import DistinctResponses
from megatron_lpc.data.hidden_store import HiddenOrigin, HiddenStore, rows_of_pairs
from megatron_lpc.data.pair_hidden import PairHidden

HIDDEN_SIZE = 4
LENGTHS = np.array([[2, 1], [5, 4], [1, 3], [2, 2], [1, 1]], np.int32)
"""Tokens of chosen and rejected, which are all different."""
ORIGIN = HiddenOrigin(data="d" * 64, weights="w", model="m")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hidden_store, "BLOCK_PAIRS", 2)


def store(root: Path, origin: HiddenOrigin = ORIGIN, hidden_size: int = HIDDEN_SIZE) -> HiddenStore:
    keys = np.arange(LENGTHS.size, dtype=np.uint64).reshape(-1, 2)
    return HiddenStore(root, origin, DistinctResponses.numbered(keys, LENGTHS), hidden_size)


def rows_of(example: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the chosen and of the rejected response, each with one row more than it has tokens."""
    counts = (LENGTHS[example] + 1).tolist()
    rows = torch.arange(sum(counts) * HIDDEN_SIZE).view(-1, HIDDEN_SIZE) + 1000 * example
    chosen, rejected = rows.to(dtype).split(counts)
    return chosen, rejected


def filled(root: Path, dtype: torch.dtype = torch.float32) -> HiddenStore:
    written = store(root)
    for block in range(written.num_blocks):
        written.write_block(block, [rows_of(example, dtype) for example in written.pairs_of(block)])
    return written


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pairs_in_any_order(tmp_path: Path, dtype: torch.dtype) -> None:
    filled(tmp_path, dtype)
    hidden = store(tmp_path).read([4, 1, 2])
    chosen = [rows_of(example, dtype)[0] for example in (4, 1, 2)]
    rejected = [rows_of(example, dtype)[1] for example in (4, 1, 2)]
    assert torch.equal(hidden.prompt_end, torch.stack([rows[0] for rows in chosen]))
    assert torch.equal(hidden.response_end, torch.stack([rows[-1] for rows in (*chosen, *rejected)]))
    assert torch.equal(hidden.loss_tokens, torch.cat([rows[:-1] for rows in (*chosen, *rejected)]))
    assert hidden.loss_tokens.dtype == dtype


def test_rows_of_a_micro_batch_are_what_is_read(tmp_path: Path) -> None:
    hidden = filled(tmp_path).read([0, 3])
    lengths = [*LENGTHS[[0, 3], 0], *LENGTHS[[0, 3], 1]]
    for rows, example in zip(rows_of_pairs(hidden, lengths), (0, 3), strict=True):
        assert all(map(torch.equal, rows, rows_of(example)))


def test_a_response_of_many_pairs_is_kept_once(tmp_path: Path) -> None:
    """The same two responses with either label, one of them beside a new one, all again, and one that is both."""
    keys = np.array([[7, 9], [9, 7], [7, 3], [9, 3], [5, 5]], np.uint64)
    tokens = {7: 2, 9: 1, 3: 4, 5: 1}
    lengths = np.array([[tokens[int(key)] for key in pair] for pair in keys], np.int32)
    of_response = {key: torch.full((count + 1, HIDDEN_SIZE), float(key)) for key, count in tokens.items()}
    written = HiddenStore(tmp_path, ORIGIN, DistinctResponses.numbered(keys, lengths), HIDDEN_SIZE)
    assert [written.pairs_of(block) for block in range(written.num_blocks)] == [[0, 2], [4]]
    assert written.num_responses([0, 1]) == 4
    assert written.num_rows([0, 1]) == sum(map(len, of_response.values()))
    for block in range(written.num_blocks):
        pairs = written.pairs_of(block)
        written.write_block(block, [tuple(of_response[int(key)] for key in keys[pair]) for pair in pairs])
    for pair, (chosen, rejected) in enumerate(keys.tolist()):
        hidden = written.read([pair])
        assert torch.equal(hidden.loss_tokens, torch.cat([of_response[chosen][:-1], of_response[rejected][:-1]]))
        assert hidden.response_end[:, 0].tolist() == [chosen, rejected]


def test_missing_blocks(tmp_path: Path) -> None:
    written = store(tmp_path)
    assert written.missing_blocks() == [0, 1, 2]
    written.write_block(1, [rows_of(2), rows_of(3)])
    (written.folder / ".hidden-00002.safetensors.1.tmp").write_bytes(b"of a process that was killed")
    assert store(tmp_path).missing_blocks() == [0, 2]
    assert written.num_rows([0, 2]) == sum(len(rows) for example in (0, 1, 4) for rows in rows_of(example))
    with pytest.raises(FileNotFoundError, match="the hidden states of pair 4 are gone"):
        store(tmp_path).read([4])


@pytest.mark.parametrize(
    ("change", "message"), [({"weights": "x"}, "weights w, now x"), ({"model": "n"}, "model m, now n")]
)
def test_another_model_is_refused(tmp_path: Path, change: dict[str, str], message: str) -> None:
    filled(tmp_path)
    with pytest.raises(ValueError, match=f"these hidden states are of something else .{message}.; delete the folder"):
        store(tmp_path, replace(ORIGIN, **change)).missing_blocks()


def test_other_data_have_their_own_folder_and_refuse_files_of_these(tmp_path: Path) -> None:
    written = filled(tmp_path)
    other = store(tmp_path, replace(ORIGIN, data="e" * 64))
    assert other.missing_blocks() == [0, 1, 2]
    written.folder.rename(other.folder)
    with pytest.raises(ValueError, match=r"\(data d+, now e+\); delete"):
        other.missing_blocks()


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    written = filled(tmp_path)
    with pytest.raises(ValueError, match=r"holds \[16, 4\], and its pairs do not"):
        store(tmp_path, hidden_size=5).missing_blocks()
    path = written.folder / "hidden-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"hidden-00000\.safetensors: cannot be read"):
        store(tmp_path).missing_blocks()


def test_pair_hidden_maps_each_tensor() -> None:
    hidden = PairHidden(loss_tokens=torch.ones(3, 2), prompt_end=torch.ones(1, 2), response_end=torch.ones(2, 2))
    assert all((tensor == 2).all() for tensor in vars(hidden.map_tensors(lambda tensor: 2 * tensor)).values())
