"""What is measured, by name."""

from __future__ import annotations

PROVIDERS = {
    "trl": "TRL DPOTrainer",
    "trl-padding-free": "TRL DPOTrainer, padding-free",
    "separate": "padded sequences",
    "separate-lpc": "padded sequences, LPC",
    "packed": "packed",
    "shared-packed": "shared prompt, packed",
    "shared-packed-lpc": "shared prompt, packed, LPC",
}
"""Names on the command line, and in the table."""
ALTERNATING = "/plain"
"""After the name of a provider with LPC: the measurement whose steps alternate with those without LPC."""


def without_lpc(provider: str) -> str:
    """The provider with which one with LPC is compared."""
    return provider.removesuffix("-lpc")


def measurements(providers: list[str]) -> list[str]:
    """The providers, and the alternating measurements where both with and without LPC are among them."""
    both = [name for name in providers if name.endswith("-lpc") and without_lpc(name) in providers]
    return [*providers, *(name + ALTERNATING for name in both)]


class Skipped(Exception):
    """A provider that does not run here, and why."""
