"""Rows of data, options, and tokenizers."""

from __future__ import annotations

import gzip
import io
import json
import shutil
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as parquet
import yaml
from hypothesis import strategies as st
from inputs import BOMBS, ODD_YAML, changed_bytes, changed_json, dumps, json_or_bytes
from outcome import Wrong

from megatron_lpc.config import all_options, load_yaml, parse_args, save_resolved, validate_values
from megatron_lpc.config.data_formats import DataFormat
from megatron_lpc.config.schema import DataConfig
from megatron_lpc.config.values import from_yaml
from megatron_lpc.data.encode import encode_pair
from megatron_lpc.data.pairs import Pair, to_pair
from megatron_lpc.data.source import BadRow, read_rows
from megatron_lpc.data.tokenizer import Tokenizer, load_tokenizer

_LONG = 100_000
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
ROWS: list[dict[str, Any]] = [
    {"prompt": "who?", "chosen": "me", "rejected": "you", "group": "a"},
    {"prompt": "who?", "chosen": "me", "rejected": "you", "group": 3, "system": None, "ignored": {"a": [1]}},
    {
        "prompt": [{"role": "user", "content": "who?"}],
        "chosen": [{"role": "assistant", "content": "me"}],
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "you"}]}],
        "system": "be kind",
        "tools": json.dumps(TOOLS),
        "chat_template_kwargs": {"thinking": True},
        "group": "b",
    },
    {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c", "group": "c"},
    {
        "conversations": [{"from": "human", "value": "a"}],
        "chosen": {"from": "gpt", "value": "b"},
        "rejected": {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
        "group": "d",
    },
]


@st.composite
def rows(draw: st.DrawFn) -> tuple[dict[str, bytes], dict[str, Any]]:
    """A file of rows, and options of its reading."""
    few = draw(st.lists(st.sampled_from(ROWS), min_size=1, max_size=3))
    at = draw(st.integers(0, len(few) - 1))
    lines = [dumps(row if number != at else draw(changed_json(row))) for number, row in enumerate(few)]
    as_lines = "\n".join(lines).encode(errors="surrogatepass")
    name = draw(st.sampled_from(("d.jsonl", "d.jsonl", "d.json", "d.jsonl.gz", "d.parquet", "d.arrow", "d.jsonl.zst")))
    if name == "d.json":
        as_lines = b"[" + b",".join(as_lines.splitlines()) + b"]"
    if name.endswith(".gz"):
        packed = gzip.compress(as_lines, 1)
        as_lines = draw(st.one_of(st.just(packed), changed_bytes(packed), st.sampled_from(BOMBS)))
    elif name.endswith((".parquet", ".arrow")):
        as_lines = draw(changed_bytes(draw(st.sampled_from(TABLES[name]))))
    elif name.endswith(".zst") or draw(st.integers(0, 5)) == 0:
        as_lines = draw(changed_bytes(as_lines))
    options = {
        "data_format": draw(st.sampled_from(("trl", *get_args(DataFormat)))),
        "group_column": draw(st.sampled_from((None, "group"))),
    }
    return {name: as_lines}, options


def _tables() -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {"d.parquet": [], "d.arrow": []}
    texts = pa.Table.from_pylist(ROWS[:1] * 40)
    chats = pa.Table.from_pylist([{key: value for key, value in ROWS[2].items() if key != "tools"}] * 3)
    same = pa.DictionaryArray.from_arrays(pa.array([0] * 500, pa.int32()), pa.array(["a" * 2_000_000]))
    bomb = pa.table({"prompt": same, "chosen": ["b"] * 500, "rejected": ["c"] * 500})
    for table, packed in ((texts, None), (texts, "zstd"), (chats, "zstd"), (chats, None)):
        stream = io.BytesIO()
        with pa.ipc.new_file(stream, table.schema, options=pa.ipc.IpcWriteOptions(compression=packed)) as writer:
            writer.write_table(table)
        found["d.arrow"].append(stream.getvalue())
        stream = io.BytesIO()
        with pa.ipc.new_stream(stream, table.schema, options=pa.ipc.IpcWriteOptions(compression=packed)) as writer:
            writer.write_table(table)
        found["d.arrow"].append(stream.getvalue())
    for table in (texts, chats, bomb):
        stream = io.BytesIO()
        parquet.write_table(table, stream, compression="zstd", store_schema=False)
        found["d.parquet"].append(stream.getvalue())
    return found


TABLES = _tables()


def read_pairs(folder: Path, options: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Every row becomes a pair whose texts are texts and whose tokens are tokens, or is a bad row."""
    config = DataConfig(**options)
    (file,) = folder.iterdir()
    bad = None
    for number, row in enumerate(read_rows(str(file))):
        try:
            pair = to_pair(row, config)
            _check_pair(pair)
            if number < 3 and len(pair.chosen) + len(pair.prompt) < _LONG:
                encoded = encode_pair(pair, tokenizer, config)
                if not all(0 <= token < tokenizer.vocab_size for token in encoded.chosen):
                    raise Wrong("a token id is none")
        except BadRow as error:
            json.loads(error.to_json().encode())
            bad = error
        if number == 40:
            break
    if bad is not None:
        raise bad


def _check_pair(pair: Pair) -> None:
    for content in (pair.prompt, pair.chosen, pair.rejected):
        texts = [content] if isinstance(content, str) else [m["content"] for m in content if "content" in m]
        for text in texts:
            if not isinstance(text, str) or "\0" in text:
                raise Wrong(f"a text is {type(text).__name__}")
            text.encode()
    if pair.chosen == pair.rejected or type(pair.chosen) is not type(pair.prompt):
        raise Wrong("responses are equal, or of another form than the prompt")
    if not isinstance(pair.group, str | None):
        raise Wrong("the group is no text")


_OPTIONS: dict[str, dict[str, str]] = {
    "model": {"num_layers": "2", "norm_epsilon": "1e-5", "no_rope_freq": "[2]", "vocab_size": "100"},
    "data": {
        "train_data": "[a.jsonl]",
        "valid_data": "{v: b.jsonl}",
        "tokenizer_model": "x.model",
        "streaming": "false",
    },
    "training": {"lr": "1e-4", "seed": "3", "train_iters": "10", "bf16": "none"},
    "loss": {"loss_type": "dpo", "beta": "0.1"},
    "checkpoint": {"save": "runs/x", "override_resume": "[data]"},
}
_FLAGS = ("--lr", "--num-layers", "--train-data", "--valid-data", "--loss-type", "--streaming", "--save", "--nothing")
_ARGUMENTS = (
    "",
    "1",
    "-1",
    "1e999",
    "nan",
    "9" * 5000,
    "a=b",
    "=",
    "a=",
    "\udc80",
    "\0",
    "x" * 9000,
    "default",
    "none",
)


@st.composite
def option_files(draw: st.DrawFn) -> tuple[dict[str, bytes], list[str]]:
    """A YAML file of options, and flags."""
    lines = []
    names = [name for options in _OPTIONS.values() for name in (*options, "")]
    odd = draw(st.lists(st.integers(0, len(names) - 1), max_size=2))
    number = 0
    for section, options in _OPTIONS.items():
        for name, value in options.items():
            if not lines or name == next(iter(options)):
                lines.append(
                    f"{section}:" if number - 1 not in odd else f"{section}: {draw(st.sampled_from(ODD_YAML))}"
                )
            lines.append(f"  {name}: {draw(st.sampled_from(ODD_YAML)) if number in odd else value}")
            number += 1
        number += 1
    text = "\n".join(lines) + "\n"
    if draw(st.integers(0, 9)) == 0:
        text = draw(st.sampled_from(ODD_YAML))
    content = text.encode(errors="surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        content = draw(changed_bytes(content))
    flags = draw(st.lists(st.one_of(st.sampled_from(_FLAGS), st.sampled_from(_ARGUMENTS)), max_size=4))
    return {"run.yaml": content}, flags if draw(st.integers(0, 2)) == 0 else []


def read_options(folder: Path, flags: list[str]) -> None:
    """Options are of their types, and come back from the file to which they are saved."""
    config = parse_args(["--config", str(folder / "run.yaml"), *flags])
    for option in all_options().values():
        from_yaml(option.kind, option.value(config))
    saved = folder.parent / "saved.yaml"
    save_resolved(config, saved)
    if load_yaml(saved) != config:
        raise Wrong("saved options are others")
    if "hf_abcdef" in saved.read_text() or ":password@" in saved.read_text():
        raise Wrong("a secret is saved")
    found = yaml.safe_load((folder / "run.yaml").read_bytes())
    model = (found or {}).get("model") or {}
    if not flags and model.get("num_layers", config.model.num_layers) != config.model.num_layers:
        raise Wrong("another number of layers")
    with_one_line(config)


def with_one_line(config: Any) -> None:
    """`validate` has a line per broken rule."""
    try:
        validate_values(config)
    except ValueError as error:
        raise ValueError("; ".join(str(error).splitlines())) from error


@st.composite
def tokenizer_files(draw: st.DrawFn, base: dict[str, bytes]) -> dict[str, bytes]:
    """A folder of a tokenizer with one file changed, or one added."""
    name = draw(st.sampled_from([*base, "chat_template.jinja", "config.json", "special_tokens_map.json"]))
    if name.endswith(".model"):
        return {name: draw(changed_bytes(base[name]))}
    files = {other: content for other, content in base.items() if not other.endswith(".model")}
    if name.endswith(".jinja"):
        template = draw(
            st.sampled_from(("{{ x", "{{ messages[0].nothing.more }}", "{% for m in m %}", "{{ 1/0 }}", "\0", "é"))
        )
        return files | {name: template.encode()}
    if name not in base:
        auto_map = {"auto_map": {"AutoTokenizer": ["tokenization_x.X", None], "AutoConfig": "tokenization_x.X"}}
        value = {"model_type": draw(st.sampled_from(("llama", "unknown", 3))), "eos_token": "</s>"}
        value |= draw(
            st.sampled_from((auto_map, {"num_labels": 2, "num_hidden_layers": 2, "max_position_embeddings": 9}))
        )
        return files | {name: dumps(draw(changed_json(value))).encode()}
    if name == "tokenizer_config.json" and draw(st.integers(0, 3)) == 0:
        value = json.loads(base[name]) | {"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}}
        value.pop("tokenizer_class", None)
        code = b"open('code-has-run', 'w')\nclass X: pass\n"
        return files | {name: json.dumps(value).encode(), "tokenization_x.py": code}
    return files | {name: draw(json_or_bytes(base[name]))}


def read_tokenizer(folder: Path) -> None:
    """A tokenizer gives ids of its vocabulary, and writes chats or refuses them."""
    models = list(folder.glob("*.model"))
    tokenizer = load_tokenizer(DataConfig(tokenizer_model=str(models[0] if models else folder)))
    ids = tokenizer.encode("the cat</s>", add_bos=True)
    if not all(0 <= token < tokenizer.vocab_size for token in ids):
        raise Wrong("a token id is none")
    if not isinstance(tokenizer.decode(ids), str):
        raise Wrong("a text is none")
    try:
        tokenizer.render_chat([{"role": "user", "content": "who?"}])
    except (ValueError, LookupError) as error:
        raise ValueError(f"--tokenizer-model: {error}") from error


def copy_files(folder: str) -> dict[str, bytes]:
    """Name -> content of the files of a folder."""
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}


def place(files: dict[str, bytes], folder: Path) -> None:
    """Write an input in place of the last one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
