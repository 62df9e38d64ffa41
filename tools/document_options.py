"""Write the reference of all options, `docs/configuration.md`, from the schema.

python tools/document_options.py          # write the page
python tools/document_options.py --check  # exit with 1 when the page differs from the schema
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_lpc.command_line import ArgumentParser, UserError, reports_errors
from megatron_lpc.config import all_options, shown
from megatron_lpc.config.kinds import choices, split_optional
from megatron_lpc.config.options import Option, sections
from megatron_lpc.files import write_text
from megatron_lpc.terminal import markdown_table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"

INTRODUCTION = """\
# Configuration reference

Every option of a run. This page is generated from `megatron_lpc/config/schema/` by `python tools/document_options.py`;
do not edit it by hand.

An option is a key in its section of a YAML file, or a flag: `micro_batch_size` under `training:` is
`--micro-batch-size`. A flag beats the file, and the file beats the default. A boolean is switched by `--bf16` and
`--no-bf16`.

## How a file and flags go together

- **To unset what the file sets**, give the flag the value `default`: `--kl-weight default` is the default of the table
  below, whatever the file says (a file of that name is `./default`). Options of which the type says "or none" take
  `none`: `--train-iters none`. Options that take several values are empty without any: `--valid-data`.
- **One file serves a run and its baseline.** Options of the file that a flag leaves without effect, such as
  `kl_weight` beside `--latent-mode none`, are listed in one warning and ignored: the printed and the saved
  configuration have their defaults.
- **Options without effect are refused** when they are typed as a flag, or when they have no effect in the file by
  itself. The column "No effect" says when. An option at its default is never refused.
- Options that contradict each other, the number of processes or the device are refused at the start, all in one
  message.

## What the columns say

- **Range**: interval of a number; `(` and `)` exclude the end.
- **Role**: what the option belongs to. A checkpoint is read only with the options of the roles *backbone weights* and
  *head weights* that it was saved with; those of the role *run* may change, except for `bf16` when a run is resumed.
- **Hugging Face**: what conversion reads the option from and writes it to, in `config.json`.
"""


def page() -> str:
    """The whole page."""
    tables = (_section(name, section_class) for name, section_class in sections().items())
    return "\n".join([INTRODUCTION, *tables])


def _section(name: str, section_class: type) -> str:
    options = [option for option in all_options().values() if option.section == name]
    has_settings = any(_setting(option) for option in options)
    headings = ["Option", "Flag", "Type", "Default", "Range", "Role", "No effect", "Help"]
    if has_settings:
        headings.insert(-1, "Hugging Face")
    rows = [_row(option, has_settings) for option in options]
    return f"## `{name}`\n\n{section_class.__doc__}\n\n{markdown_table(headings, rows, left=len(headings))}"


def _row(option: Option, has_settings: bool) -> list[str]:
    cells = [
        f"`{option.name}`",
        f"`{_flag(option)}`",
        _type(option.kind),
        f"`{_default(option.default)}`",
        f"`{option.range}`" if option.range else "",
        option.role.value,
        "; ".join(rule.reason for rule in option.idle),
    ]
    if has_settings:
        cells.append(_setting(option))
    return [*cells, " ".join(option.help.split())]


def _flag(option: Option) -> str:
    if split_optional(option.kind)[0] is bool:
        return f"--[no-]{option.name.replace('_', '-')}"
    return option.flag


def _type(kind: Any) -> str:
    inner, is_optional = split_optional(kind)
    names = [f"`{choice}`" for choice in choices(kind)] or [f"`{getattr(inner, '__name__', inner)}`"]
    if isinstance(kind, type(list[str])):
        names = [f"`{kind}`"]
    return ", ".join(names) + (" or none" if is_optional else "")


def _default(value: object) -> str:
    return '""' if value == "" else shown(value)


def _setting(option: Option) -> str:
    if option.metadata.hf_setting is not None:
        return f"`{option.metadata.hf_setting}`"
    return option.metadata.hf_rule or ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = ArgumentParser(description="Write docs/configuration.md from the schema of options.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when the page is stale")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE.md", help="the page (docs/configuration.md)")
    with reports_errors():
        options = parser.parse_args(arguments)
        if options.check:
            check(options.page)
        else:
            write_text(options.page, page())


class StalePage(UserError):
    """The page differs from what the schema gives."""

    exit_code = 1


def check(path: Path) -> None:
    """Compare the page with the schema.

    Raises:
        StalePage: they differ, or there is no page.
    """
    if not path.is_file() or path.read_text(encoding="utf-8") != page():
        raise StalePage(f"{path}: differs from the schema of options; run `python tools/document_options.py`")


if __name__ == "__main__":
    main(sys.argv[1:])
