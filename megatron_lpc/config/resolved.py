"""The resolved options of a run, shown and kept: what was asked for and every default beside it."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from megatron_lpc.config.options import changed_options, sections, shown
from megatron_lpc.config.schema import Config


def print_config(config: Config, console: Console | None = None) -> None:
    """Print every option, a row a section; those that differ from their default come in bold with a star. For one rank only."""
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
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
