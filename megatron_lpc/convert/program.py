"""Convert between Hugging Face models and megatron-core checkpoints, in either direction, on a machine without a GPU.

python -m megatron_lpc.convert import --hf PATH_OR_NAME --output DIR
python -m megatron_lpc.convert export --load DIR --output HF_DIR
python -m megatron_lpc.convert verify HF_DIR DIR
python -m megatron_lpc.convert inspect DIR
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_lpc.command_line import ArgumentParser, UserError, reports_errors
from megatron_lpc.convert.comparison import comparison_table
from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.export_hf import export_hf
from megatron_lpc.convert.gguf_file import hf_source
from megatron_lpc.convert.import_hf import DTYPES, import_hf
from megatron_lpc.convert.inspect_model import inspection_table
from megatron_lpc.convert.open_model import open_model
from megatron_lpc.convert.verify import TEXTS, verify
from megatron_lpc.outside.files import read_text
from megatron_lpc.outside.json_text import read_json
from megatron_lpc.outside.messages import Malformed
from megatron_lpc.terminal import wide_console

_BYTES_OF_UNIT = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


class ModelsDiffer(UserError):
    """`verify` found two models that do not agree."""

    exit_code = 1


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: arguments without the program's name; those of the process when unset.

    Raises:
        SystemExit: 2 when something cannot be converted, 1 when two models differ, after one line on standard error.
    """
    with reports_errors():
        options = parser().parse_args(argv)
        options.run(options)


def parser() -> argparse.ArgumentParser:
    """The parser of all four commands; `run` of the parsed options is the command's function."""
    root = ArgumentParser(prog="megatron-lpc-convert", description=(__doc__ or "").splitlines()[0])
    commands = root.add_subparsers(dest="command", required=True)
    _add_import(commands)
    _add_export(commands)
    _add_verify(commands)
    _add_inspect(commands)
    return root


def shard_size(text: str) -> int:
    """Bytes of a size such as `500MB`; units are powers of 1000.

    Raises:
        argparse.ArgumentTypeError: not a positive whole number with KB, MB, GB or no unit.
    """
    match = re.fullmatch(r"(\d+)(KB|MB|GB|)", text.upper())
    if not match or not int(match[1]):
        raise argparse.ArgumentTypeError(f"'{text}' is not a size; write 500MB or 5GB")
    return int(match[1]) * _BYTES_OF_UNIT[match[2]]


def _add_import(commands: Any) -> None:
    command = commands.add_parser("import", help="Hugging Face -> megatron-core checkpoint")
    command.add_argument(
        "--hf",
        required=True,
        help="folder with config.json and weights, a name on the Hub, or a GGUF file",
    )
    command.add_argument(
        "--resize-token-embeddings",
        type=int,
        nargs="?",
        const=0,
        metavar="N",
        help="grow to N token ids, or to as many as the tokenizer has; new rows of the embedding and the LM head are "
        "the mean of the others",
    )
    command.add_argument(
        "--make-query-groups-divisible-by",
        type=int,
        default=1,
        metavar="N",
        help="add query groups of zeros, with their query heads, up to a multiple of N: then tensor parallel size N "
        "divides them (default: 1, none)",
    )
    _add_output_flags(command)
    command.set_defaults(run=_import)


def _add_export(commands: Any) -> None:
    command = commands.add_parser("export", help="megatron-core checkpoint -> Hugging Face")
    command.add_argument(
        "--load",
        required=True,
        type=Path,
        help="folder of one checkpoint, or of a run, whose latest checkpoint is exported",
    )
    command.add_argument(
        "--max-shard-size",
        type=shard_size,
        default=5 * 10**9,
        help="largest file of weights, such as 500MB (default: 5GB)",
    )
    head = command.add_mutually_exclusive_group()
    head.add_argument(
        "--for-serving",
        dest="form",
        action="store_const",
        const="serving",
        default="whole",
        help="a plain model of its family, beside it the codes as a table of logits, and logits processors for vLLM",
    )
    head.add_argument(
        "--backbone-only",
        dest="form",
        action="store_const",
        const="backbone",
        help="leave the LPC head out: a plain model of its family",
    )
    command.add_argument("--code-names", type=Path, metavar="FILE.json", help="a JSON list that names each code")
    _add_hf_config_flag(command)
    _add_output_flags(command)
    command.set_defaults(run=_export)


def _add_verify(commands: Any) -> None:
    command = commands.add_parser("verify", help="compare logits and every tensor of two models, in either format")
    command.add_argument("first")
    command.add_argument("second")
    command.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help="text whose logits are compared (default: a few built-in sentences)",
    )
    command.add_argument(
        "--tolerance",
        type=float,
        help="largest difference of two models that agree, relative to the largest element of a tensor or of a text's "
        "logits (default: 1e-5, or what rounding to the coarser dtype explains where their dtypes differ)",
    )
    _add_hf_config_flag(command)
    command.set_defaults(run=_verify)


def _add_inspect(commands: Any) -> None:
    command = commands.add_parser("inspect", help="show what a folder holds")
    command.add_argument("folder", type=Path)
    _add_hf_config_flag(command)
    command.set_defaults(run=_inspect)


def _add_hf_config_flag(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--hf-config",
        type=Path,
        help="folder with the original config.json and tokenizer (default: those of the import)",
    )


def _add_output_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--output", required=True, type=Path, help="folder to write")
    command.add_argument(
        "--dtype",
        choices=["keep", *DTYPES],
        default="keep",
        help="dtype of the written weights (default: keep)",
    )
    command.add_argument("--force", action="store_true", help="replace the folder to write, if it exists")


def _import(options: argparse.Namespace) -> None:
    dtype = DTYPES.get(options.dtype)
    with hf_source(options.hf, dtype) as folder:
        described = import_hf(
            folder,
            options.output,
            dtype=dtype,
            vocab_size=options.resize_token_embeddings,
            query_groups_multiple=options.make_query_groups_divisible_by,
            force=options.force,
        )
    family = described.family.model_type
    padded = described.padded_query_groups
    padding = f", with {padded} query group{'s' * (padded > 1)} of zeros" if padded else ""
    print(f"Wrote {options.output} ({family}{padding}); train with --pretrained-checkpoint {options.output}")


def _export(options: argparse.Namespace) -> None:
    described = export_hf(
        options.load,
        options.output,
        hf_config=options.hf_config,
        dtype=DTYPES.get(options.dtype),
        max_shard_bytes=options.max_shard_size,
        form=options.form,
        code_names=_read_code_names(options.code_names),
        force=options.force,
    )
    head = " with an LPC head" if described.latent else ""
    codes = " and its codes for a server" if options.form == "serving" else ""
    print(f"Wrote {options.output} ({described.family.model_type}{head}{codes})")


def _verify(options: argparse.Namespace) -> None:
    with hf_source(options.first) as first, hf_source(options.second) as second:
        comparison = verify(
            open_model(first, options.hf_config),
            open_model(second, options.hf_config),
            _read_texts(options.text),
        )
    wide_console().print(comparison_table(comparison))
    verdict = comparison.verdict(options.tolerance)
    if not comparison.agrees(options.tolerance):
        raise ModelsDiffer(f"{options.first} and {options.second} differ by {verdict}")
    print(verdict)


def _inspect(options: argparse.Namespace) -> None:
    opened = open_model(options.folder, options.hf_config)
    wide_console().print(inspection_table(options.folder, opened))


def _read_texts(path: Path | None) -> Sequence[str]:
    if path is None:
        return TEXTS
    try:
        return [read_text(path)]
    except Malformed as error:
        raise ConversionError(f"--text {error}") from error


def _read_code_names(path: Path | None) -> list[str] | None:
    if path is None:
        return None
    try:
        names: list[str] = read_json(path, list[str])
    except Malformed as error:
        raise ConversionError(f"--code-names {path}: must be a JSON list of strings ({error})") from error
    return names
