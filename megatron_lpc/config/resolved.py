"""The resolved options of a run, printed and saved: what the user set, and every default."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from megatron_lpc.config.options import changed_options, sections, shown
from megatron_lpc.config.schema import Config
from megatron_lpc.files import write_text


def print_config(config: Config, console: Console | None = None) -> None:
    """Print every option, one row per section; those that differ from their default are bold with a star.

    To be called on one rank.
    """
    changed = changed_options(config)
    table = Table(
        title="configuration (* differs from the default)", title_justify="left", show_header=False, show_lines=True
    )
    for section in sections():
        # `Text`, for markup would swallow a value such as `[x]`.
        entries = [
            Text(f"{name}{'*' * (name in changed)}={shown(value)}", "bold" * (name in changed))
            for name, value in vars(getattr(config, section)).items()
        ]
        table.add_row(section, Text("   ").join(entries))
    (console or Console()).print(table)


def save_resolved(config: Config, path: str | Path) -> None:
    """Write all options as YAML that `load_yaml` turns into an equal `Config`. The file appears whole or not at all."""
    write_text(path, yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True))
