"""Data that are tokenized beforehand are found by a run of the same options."""

import pytest

from megatron_lpc.config import load_yaml, with_options
from megatron_lpc.data import row_chunks
from megatron_lpc.data.cache import build_dataset
from megatron_lpc.preprocess_data import main
from megatron_lpc.training.inputs import open_tokenizer


def test_a_training_finds_what_was_tokenized_beforehand(tiny_run, tmp_path, capsys, monkeypatch):
    flags = ["--config", tiny_run.config, "--data-cache-path", str(tmp_path)]
    main([*flags, "--tensor-model-parallel-size", "4"])
    lines = capsys.readouterr().out.splitlines()
    monkeypatch.setattr(row_chunks, "encode_pair", None)
    config = with_options(load_yaml(tiny_run.config), data_cache_path=str(tmp_path))
    datasets = [("train", config.data.train_data), *((name, [file]) for name, file in config.data.valid_data.items())]
    for line, (name, sources) in zip(lines, datasets, strict=True):
        data = build_dataset(config.data, open_tokenizer(config), sources, name)
        assert line == f"{name}: {len(data)} pairs in {data.folder}"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-workers", "0"], "--num-workers 0"),
        (["--train-data"], "--train-data"),
        (["--train-data", "missing.jsonl"], "missing.jsonl: no such"),
        (["--streaming", "--train-iters", "1", "--valid-data"], "nothing to tokenize beforehand"),
    ],
)
def test_mistakes_are_told(tiny_run, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as end:
        main(["--config", tiny_run.config, "--data-cache-path", str(tmp_path), *flags])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
