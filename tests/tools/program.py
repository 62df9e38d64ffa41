"""The programs of the repository, which are no modules of a package, as modules of a test."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def load_program(file: str) -> ModuleType:
    """A program as a module, read again each time.

    Args:
        file: its path from the root of the repository.
    """
    spec = importlib.util.spec_from_file_location(file.removesuffix(".py").replace("/", "_"), ROOT / file)
    assert spec is not None
    assert spec.loader is not None
    # Dataclasses look their module up here.
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
