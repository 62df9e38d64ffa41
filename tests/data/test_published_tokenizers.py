"""Rows become the token ids that TRL's DPOTrainer makes of them, with the tokenizers of published models.

Those of sentencepiece models are read in both ways: by transformers, and as a `.model` file.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sentencepiece
from published import FAMILIES, write_tokenizer

from megatron_lpc.config.schema import DataConfig
from megatron_lpc.data import encode
from megatron_lpc.data.cache import build_dataset
from megatron_lpc.data.encode import encode_pair
from megatron_lpc.data.pairs import to_pair
from megatron_lpc.data.source import Location, Row, read_rows
from megatron_lpc.data.tokenizer import Tokenizer, load_tokenizer

trl = pytest.importorskip("trl.trainer.dpo_trainer")

CASES = Path(__file__).parent / "cases"


def rows_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (CASES / f"{name}.jsonl").read_text("utf-8").splitlines()]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "You answer as a pirate."}
RESPONSES = {"chosen": [assistant("Ahoy.")], "rejected": [assistant("Hello.")]}
ROWS = {
    "one turn": [
        {"prompt": [user("Name a bird.")], "chosen": [assistant("A wren.")], "rejected": [assistant("A cat.")]}
    ],
    "spaces": [{"prompt": [user(" Hi ")], "chosen": [assistant(" Hello.\n")], "rejected": [assistant("  Go.")]}],
    "turns": [{"prompt": [user("Hi"), assistant("Hello."), user("2+2=")], **RESPONSES}],
    "system": [{"prompt": [SYSTEM, user("Hi")], **RESPONSES}],
    "thoughts": [
        {
            "prompt": [user("Hi")],
            "chosen": [assistant("<think>\nHm.\n</think>\n\nHello.")],
            "rejected": [assistant("Go.")],
        }
    ],
    "tools": rows_of("tools_col"),
    "tool calls": rows_of("toolcalls_null"),
    "arguments": rows_of("toolargs"),
    "template variables": rows_of("ctk"),
    "texts": [*rows_of("apart"), {"prompt": "Name a bird.\n", "chosen": "\nA wren.", "rejected": "A cat."}],
    "seam": [{"prompt": "Answer: ", "chosen": "Go.", "rejected": " no"}],
}
NEEDS_TOOLS = {"tool calls", "arguments"}
WITH_TOOLS = {"qwen2.5", "qwen3"}


class Rows(list):
    """What TRL needs of a `datasets.Dataset`; columns stay what they are."""

    def map(self, function: Any, fn_kwargs: dict[str, Any], **_: Any) -> Rows:
        return Rows([{**row, **function(dict(row), **fn_kwargs)} for row in self])


def ids_of_trl(folder: Path, rows: list[dict[str, Any]]) -> list[list[list[int]]]:
    """Prompt, chosen and rejected of each row."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    options = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    found = trl.DPOTrainer._prepare_dataset(trainer, Rows(rows), tokenizer, options, "train")
    return [[list(row[f"{name}_ids"]) for name in ("prompt", "chosen", "rejected")] for row in found]


def our_ids(tokenizer: Tokenizer, rows: list[dict[str, Any]], **options: Any) -> list[list[list[int]]]:
    config = DataConfig(**({"max_length": 4096} | options))
    pairs = [to_pair(Row(Location("rows.jsonl", number), row), config) for number, row in enumerate(rows, start=1)]
    encoded = [encode_pair(pair, tokenizer, config) for pair in pairs]
    return [[list(pair.prompt), list(pair.chosen), list(pair.rejected)] for pair in encoded]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {name: tmp_path_factory.mktemp(name) for name in FAMILIES}
    for name, folder in found.items():
        write_tokenizer(FAMILIES[name], folder)
    return found


def tokenizers_of(folder: Path) -> list[Tokenizer]:
    """By transformers, and by sentencepiece where the family has a file."""
    found = [load_tokenizer(DataConfig(tokenizer_model=str(folder)))]
    model = folder / "tokenizer.model"
    if model.is_file():
        options = DataConfig(tokenizer_model=str(model), chat_template=str(folder / "template.jinja"))
        found.append(load_tokenizer(options))
    return found


def rows_for(family: str) -> dict[str, list[dict[str, Any]]]:
    """The rows that the family's template takes."""
    left_out = set() if family in WITH_TOOLS else NEEDS_TOOLS
    if FAMILIES[family].no_system:
        left_out = left_out | {"system"}
    return {name: rows for name, rows in ROWS.items() if name not in left_out}


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_trl(folders: dict[str, Path], family: str, caplog: pytest.LogCaptureFixture) -> None:
    tokenizers = tokenizers_of(folders[family])
    for name, rows in rows_for(family).items():
        theirs = ids_of_trl(folders[family], rows)
        for tokenizer in tokenizers:
            assert our_ids(tokenizer, rows) == theirs, f"{name}, {type(tokenizer).__name__}"
    assert "without a special token" not in caplog.text, "all of these templates write an end"


@pytest.mark.parametrize("family", FAMILIES)
def test_sequences_that_are_cut_are_those_of_trl(folders: dict[str, Path], family: str) -> None:
    """`keep_start`; TRL's `keep_end` cuts the prompts of chosen and rejected differently."""
    rows = ROWS["turns"]
    ((prompt, chosen, rejected),) = ids_of_trl(folders[family], rows)
    example = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
    longest = len(prompt) + max(len(chosen), len(rejected))
    for max_length in (longest - 2, longest + 2):
        theirs = trl.DataCollatorForPreference(pad_token_id=0, max_length=max_length, truncation_mode="keep_start")
        batch = theirs([example])["input_ids"].tolist()
        for tokenizer in tokenizers_of(folders[family]):
            (ours,) = our_ids(tokenizer, rows, max_length=max_length, truncation_mode="keep_start")
            sequences = [ours[0] + response for response in ours[1:]]
            assert [sequence + [0] * (len(batch[0]) - len(sequence)) for sequence in sequences] == batch


def sentencepiece_family(folders: dict[str, Path], family: str = "mistral") -> tuple[list[Tokenizer], Any]:
    """Its tokenizers, and ids -> pieces."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(folders[family] / "tokenizer.model"))
    return tokenizers_of(folders[family]), lambda ids: [model.id_to_piece(token) for token in ids]


def test_bos_that_is_written_out_stands_once(folders: dict[str, Path]) -> None:
    rows = rows_of("bos")
    without = [row | {"prompt": row["prompt"].removeprefix("<s>")} for row in rows]
    tokenizers, pieces = sentencepiece_family(folders)
    for tokenizer in tokenizers:
        ((prompt, chosen, _),) = our_ids(tokenizer, rows)
        assert pieces(prompt)[:3] == ["<s>", "▁[", "INST"]
        assert pieces(chosen)[-1] == "</s>"
        assert our_ids(tokenizer, without) == our_ids(tokenizer, rows)


def test_responses_begin_as_in_a_text(folders: dict[str, Path]) -> None:
    """Not `▁`, `4` and not `▁`, `▁Hello`."""
    tokenizers, pieces = sentencepiece_family(folders)
    for tokenizer in tokenizers:
        chosen = [pieces(ids[1]) for ids in our_ids(tokenizer, rows_of("apart"))]
        assert chosen[0] == ["4", "</s>"]
        assert chosen[1][0][0] == "H"
        assert chosen[2] == ["▁Hello", ".", "</s>"]


def test_control_tokens_are_tokens(folders: dict[str, Path]) -> None:
    tokenizers, pieces = sentencepiece_family(folders, "mistral-v3")
    for tokenizer in tokenizers:
        ((prompt, chosen, _),) = our_ids(
            tokenizer, [{"prompt": [user("Hi")], "chosen": [assistant("Hello.")], "rejected": [assistant("Go.")]}]
        )
        assert pieces(prompt) == ["<s>", "[INST]", "▁Hi", "[/INST]"]
        assert pieces(chosen) == ["▁Hello", ".", "</s>"]


def test_a_system_column_is_the_first_turn(folders: dict[str, Path]) -> None:
    (tokenizer,) = tokenizers_of(folders["qwen2.5"])
    ids = our_ids(tokenizer, rows_of("system_col"))
    assert ids == our_ids(tokenizer, ROWS["system"])
    text = tokenizer.decode(ids[0][0], show_special=True)
    assert text.startswith("<|im_start|>system\nYou answer as a pirate.<|im_end|>\n<|im_start|>user\nHi<|im_end|>")


def test_a_template_without_tools_is_warned_of(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "_topics_said", set())
    for family, expected in (("qwen3", 0), ("smollm2", 1), ("smollm2", 1)):
        our_ids(tokenizers_of(folders[family])[0], rows_of("tools_col"))
        assert len(caplog.records) == expected
    assert "does not read `tools`, so the column changes nothing" in caplog.text


def test_template_variables_reach_the_template(folders: dict[str, Path]) -> None:
    (tokenizer,) = tokenizers_of(folders["qwen3"])
    ((prompt, _, _),) = our_ids(tokenizer, rows_of("ctk"))
    assert tokenizer.decode(prompt, show_special=True).endswith("assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize("family", sorted(WITH_TOOLS))
def test_both_files_of_tool_calls_are_the_same_tokens(folders: dict[str, Path], family: str) -> None:
    (tokenizer,) = tokenizers_of(folders[family])
    jsonl, parquet = (
        [row.values for row in read_rows(str(CASES / f"toolargs.{kind}"))] for kind in ("jsonl", "parquet")
    )
    assert our_ids(tokenizer, parquet) == our_ids(tokenizer, jsonl)
    text = tokenizer.decode(our_ids(tokenizer, parquet)[0][0])
    assert '{"city": "Paris"}' in text


def test_bos_stays_in_a_long_prompt(folders: dict[str, Path]) -> None:
    tokenizers, pieces = sentencepiece_family(folders)
    for tokenizer in tokenizers:
        ((prompt, _, _),) = our_ids(tokenizer, rows_of("long"), max_length=32)
        assert pieces(prompt)[0] == "<s>"
        assert tokenizer.decode(prompt).endswith("word end?")


def test_a_prompt_that_texts_repeat_is_taken_off(folders: dict[str, Path]) -> None:
    (tokenizer,) = tokenizers_of(folders["llama-3"])
    ((prompt, chosen, _),) = our_ids(tokenizer, rows_of("textrepeat"))
    assert tokenizer.decode(prompt, show_special=True) == "<|begin_of_text|>\n\nHuman: Hi\n\nAssistant:"
    assert tokenizer.decode(chosen, show_special=True) == " Hello.<|eot_id|>"


def test_a_lone_surrogate_is_a_bad_row_like_any_other(folders: dict[str, Path], tmp_path: Path) -> None:
    source = str(CASES / "surrogate.jsonl")
    config = DataConfig(bad_rows="skip", data_cache_path=str(tmp_path), tokenizer_model=str(folders["llama-3"]))
    dataset = build_dataset(config, load_tokenizer(config), [source], "train")
    assert (len(dataset), dataset.num_bad_rows) == (1, 1)
    bad = json.loads(dataset.bad_rows_file.read_text("utf-8"))
    assert (bad["file"], bad["line"]) == (source, 1)
    assert bad["reason"].startswith("`chosen` holds half of a surrogate pair, \\ud83d")
