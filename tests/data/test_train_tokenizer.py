import pytest

from megatron_lpc.config.schema import DataConfig
from megatron_lpc.data.source import Location, Row
from megatron_lpc.data.tokenizer import load_tokenizer


@pytest.fixture
def source(tmp_path, write_jsonl, text_rows):
    return write_jsonl(tmp_path / "d.jsonl", text_rows)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_the_same_input_gives_the_same_model(train_tokenizer, source, tmp_path, kind, capsys):
    models = []
    for name in ("new/one", "two"):
        arguments = [
            "--input",
            source,
            "--output",
            str(tmp_path / name),
            "--vocab-size",
            "290",
            "--model-type",
            kind,
            "--symbols",
            "[INST]",
        ]
        train_tokenizer.main(arguments)
        assert f"Wrote {tmp_path / name}.model" in capsys.readouterr().out
        models.append((tmp_path / f"{name}.model").read_bytes())
    assert models[0] == models[1]
    tokenizer = load_tokenizer(DataConfig(tokenizer_model=str(tmp_path / "two.model")))
    assert tokenizer.vocab_size == 290
    assert len(tokenizer.encode("[INST]")) == 1
    assert len({tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}) == 3
    assert len(tokenizer.encode("the cat sat")) < len("the cat sat")
    text = "  the  cat\n\nHuman: é猫 "
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_text_of_chats_and_texts(train_tokenizer):
    values = {
        "prompt": [{"role": "user", "content": "a"}],
        "chosen": [{"role": "assistant", "content": "b"}],
        "rejected": "c",
        "other": "d",
    }
    assert list(train_tokenizer.texts_of(Row(Location("f", 1), values))) == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("rows", "vocab_size", "message"),
    [
        ([{"text": "x"}], 290, "d.jsonl:1: no text in any of the columns prompt, chosen, rejected"),
        (["x"], 290, "d.jsonl:1: a JSON str, not an object"),
        ([{"prompt": "a b c"}], 5000, "Vocabulary size too high (5000)"),
        ([], 290, "sentencepiece cannot train on"),
        (None, 290, "missing.jsonl: no such data file"),
    ],
)
def test_errors(train_tokenizer, tmp_path, write_jsonl, capfd, rows, vocab_size, message):
    data = str(tmp_path / "missing.jsonl") if rows is None else write_jsonl(tmp_path / "d.jsonl", rows)
    with pytest.raises(SystemExit) as stop:
        train_tokenizer.main(["--input", data, "--output", str(tmp_path / "t"), "--vocab-size", str(vocab_size)])
    assert stop.value.code == 2
    assert message in capfd.readouterr().err
    assert not list(tmp_path.glob("*t.model*"))
