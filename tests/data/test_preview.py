"""The program that prints preference data as the model will see them."""

import io

import pytest
from published import FAMILIES, write_tokenizer
from rich.console import Console

from megatron_lpc.config.schema import DataConfig
from megatron_lpc.data import preview
from megatron_lpc.data.source import read_rows
from megatron_lpc.data.tokenizer import load_tokenizer

ROWS = [
    {
        "prompt": [{"role": "user", "content": "Name a bird."}],
        "chosen": [{"role": "assistant", "content": "A wren [b]."}],
        "rejected": [{"role": "assistant", "content": "A cat."}],
        "who": "ann",
    },
    {"prompt": "2+2=", "chosen": "4", "rejected": "5", "who": "bob"},
    {"prompt": "p", "chosen": "", "rejected": "r", "who": "bob"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    write_tokenizer(FAMILIES["qwen2.5"], folder)
    return str(folder)


@pytest.fixture
def run(folder, tmp_path, write_jsonl, capsys):
    """What the program prints: flags -> lines."""
    source = write_jsonl(tmp_path / "pairs.jsonl", ROWS)

    def lines(*flags):
        preview.main(["--train-data", source, "--tokenizer-model", folder, *flags])
        return [line.strip("│ ") for line in capsys.readouterr().out.splitlines()]

    return lines


def test_pairs_and_statistics(run):
    lines = run("--group-column", "who")
    assert "pairs.jsonl:1, group ann" in "\n".join(lines)
    assert "<|im_start|>user⏎" in lines
    assert "Name a bird.<|im_end|>⏎" in lines
    assert "A wren [b].<|im_end|>⏎" in lines
    assert lines[lines.index("chosen: 2 loss tokens") + 1] == "4<|im_end|>"
    assert "rows: 3, pairs: 2, bad rows: 1" in lines
    assert "cut (--max-length 512, --truncation-mode keep_end): 0.0% of the prompts, responses of 0.0%" in lines
    assert "groups: 2" in lines
    assert "pairs.jsonl:3: the chosen response is empty" in lines[-1]


def test_what_is_cut(run):
    lines = run("--max-length", "8", "--num-pairs", "1", "--num-rows", "1")
    assert sum(line.startswith("prompt: 1 tokens of ") and line.endswith(", cut") for line in lines) == 1
    assert "rows: 1, pairs: 1, bad rows: 0" in lines
    assert "cut (--max-length 8, --truncation-mode keep_end): 100.0% of the prompts, responses of 100.0%" in lines


def test_loss_tokens_are_coloured(folder, tmp_path, write_jsonl):
    config = DataConfig(tokenizer_model=folder)
    tokenizer = load_tokenizer(config)
    found = preview.preview(read_rows(write_jsonl(tmp_path / "pairs.jsonl", ROWS[1:2])), tokenizer, config)
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(preview.render_pair(found.pairs[0], tokenizer))
    printed = console.file.getvalue()
    assert "\x1b[32m4\x1b[0m" in printed
    assert "\x1b[31m5\x1b[0m" in printed
    assert "\x1b[1;35m<|im_end|>\x1b[0m" in printed


def test_first_spaces_of_responses_are_shown(tmp_path, write_jsonl):
    write_tokenizer(FAMILIES["llama-2"], tmp_path)
    config = DataConfig(tokenizer_model=str(tmp_path / "tokenizer.model"))
    tokenizer = load_tokenizer(config)
    rows = read_rows(write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "A:", "chosen": " Hello.", "rejected": "Go."}]))
    console = Console(file=io.StringIO(), width=80)
    console.print(preview.render_pair(preview.preview(rows, tokenizer, config).pairs[0], tokenizer))
    assert "│  Hello.</s>" in console.file.getvalue()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--train-data: is empty"),
        (["--train-data", "a.jsonl"], "--tokenizer-model is not set"),
        (["--train-data", "a.jsonl", "--num-rows", "0"], "--num-pairs: must be at least 0"),
        (["--train-data", "a.jsonl", "--max-length", "1"], "--max-length"),
        (["--data-format", "nectar", "--chosen-column", "a"], "--chosen-column = a: has no effect with --data-format"),
        (["--train-data", "a.jsonl", "--tokenizer-model", "missing.model"], "no such file"),
    ],
)
def test_errors(flags, message, capsys):
    with pytest.raises(SystemExit) as caught:
        preview.main(flags)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
