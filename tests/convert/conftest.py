"""Its worker and tests share the table of small models. Imported before any test runs: see the note in `convert.logits`."""

from __future__ import annotations

import sys
from pathlib import Path

import megatron_lpc.convert.logits  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent))
