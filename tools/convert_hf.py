"""Convert between Hugging Face's format and checkpoints of megatron-core, either way, on a machine without GPU.

python tools/convert_hf.py import --hf PATH_OR_NAME --output DIR
python tools/convert_hf.py export --load DIR --output HF_DIR
python tools/convert_hf.py verify HF_DIR DIR
python tools/convert_hf.py inspect DIR
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_lpc.command_line import UserError, reports_errors
from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.export_hf import export_hf
from megatron_lpc.convert.hf_folder import find_hf_folder
from megatron_lpc.convert.import_hf import DTYPES, import_hf
from megatron_lpc.convert.inspect_model import inspection_table
from megatron_lpc.convert.opened import open_model
from megatron_lpc.convert.verify import TEXTS, comparison_table, verify
from megatron_lpc.terminal import wide_console

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def shard_size(text: str) -> int:
    """Bytes of `500MB`."""
    match = re.fullmatch(r"(\d+)(KB|MB|GB|)", text.upper())
    if not match or not int(match[1]):
        raise argparse.ArgumentTypeError(f"'{text}' is no size; write 500MB or 5GB")
    return int(match[1]) * _UNITS[match[2]]


def _read_names(path: Path | None) -> list[str] | None:
    if path is None:
        return None
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"--code-names {path}: cannot be read ({error})") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConversionError(f"--code-names {path}: must be a JSON list of texts")
    return names


def _import(options: argparse.Namespace) -> None:
    described = import_hf(
        find_hf_folder(options.hf), options.output, dtype=DTYPES.get(options.dtype), force=options.force
    )
    print(
        f"Wrote {options.output} ({described.family.model_type}); train with --pretrained-checkpoint {options.output}"
    )


def _export(options: argparse.Namespace) -> None:
    described = export_hf(
        options.load,
        options.output,
        hf_config=options.hf_config,
        dtype=DTYPES.get(options.dtype),
        max_shard_bytes=options.max_shard_size,
        backbone_only=options.backbone_only,
        code_names=_read_names(options.code_names),
        force=options.force,
    )
    kind = f"{described.family.model_type} with an LPC head" if described.latent else described.family.model_type
    print(f"Wrote {options.output} ({kind})")


def _verify(options: argparse.Namespace) -> None:
    first, second = (open_model(path, options.hf_config) for path in (options.first, options.second))
    texts = [options.text.read_text(encoding="utf-8")] if options.text else TEXTS
    comparison = verify(first, second, texts)
    wide_console().print(comparison_table(comparison))
    if not comparison.agrees(options.tolerance):
        raise Disagreement(
            f"{options.first} and {options.second} differ by more than --tolerance {options.tolerance:g}"
        )


def _inspect(options: argparse.Namespace) -> None:
    wide_console().print(inspection_table(options.folder, open_model(options.folder, options.hf_config)))


class Disagreement(UserError):
    """Two models are not the same."""

    exit_code = 1


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = root.add_subparsers(dest="command", required=True)
    dtypes = ["keep", *DTYPES]

    command = commands.add_parser("import", help="Hugging Face -> megatron-core checkpoint")
    command.add_argument("--hf", required=True, help="folder with config.json and weights, or a name on the Hub")
    command.set_defaults(run=_import)

    exporting = commands.add_parser("export", help="megatron-core checkpoint -> Hugging Face")
    exporting.add_argument(
        "--load", required=True, type=Path, help="folder of a checkpoint, or of a run, whose newest is meant"
    )
    exporting.add_argument(
        "--max-shard-size", type=shard_size, default=5 * 10**9, help="largest file of weights, such as 500MB (5GB)"
    )
    exporting.add_argument(
        "--backbone-only", action="store_true", help="leave the LPC head out: a plain model of its family"
    )
    exporting.add_argument("--code-names", type=Path, metavar="FILE.json", help="a JSON list that names each code")
    exporting.set_defaults(run=_export)

    verifying = commands.add_parser("verify", help="compare logits and every tensor of two models, in either format")
    verifying.add_argument("first", type=Path)
    verifying.add_argument("second", type=Path)
    verifying.add_argument(
        "--text", type=Path, metavar="FILE", help="text whose logits are compared (a few sentences of this program)"
    )
    verifying.add_argument("--tolerance", type=float, default=1e-5, help="largest difference that is none (1e-5)")
    verifying.set_defaults(run=_verify)

    inspecting = commands.add_parser("inspect", help="what a folder holds")
    inspecting.add_argument("folder", type=Path)
    inspecting.set_defaults(run=_inspect)

    for reading in (exporting, verifying, inspecting):
        reading.add_argument(
            "--hf-config", type=Path, help="folder of the original config.json and tokenizer (that of the import)"
        )
    for writing in (command, exporting):
        writing.add_argument("--output", required=True, type=Path, help="folder to write")
        writing.add_argument("--dtype", choices=dtypes, default="keep", help="type of the written weights (keep)")
        writing.add_argument("--force", action="store_true", help="replace the folder to write, if it exists")
    return root


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line. Exits with 2 when something cannot be converted, with 1 when two models differ, and says what."""
    options = parser().parse_args(arguments)
    with reports_errors():
        options.run(options)


if __name__ == "__main__":
    main(sys.argv[1:])
