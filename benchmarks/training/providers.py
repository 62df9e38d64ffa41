"""What is measured, by name."""

from __future__ import annotations

PROVIDERS = {
    "trl": "TRL DPOTrainer",
    "trl-padding-free": "TRL DPOTrainer, padding-free",
    "trl-lora": "TRL DPOTrainer, LoRA",
    "separate": "padded sequences",
    "separate-lpc": "padded sequences, LPC",
    "separate-lpc-frozen": "padded sequences, LPC, frozen backbone",
    "separate-lpc-cached": "padded sequences, LPC, frozen backbone, cached hidden states",
    "packed": "packed",
    "shared-packed": "shared prompt, packed",
    "shared-packed-lpc": "shared prompt, packed, LPC",
}
"""Names on the command line, and in the table."""
FULL_LPC = "separate-lpc"
"""What the providers with a frozen backbone are compared with."""
ALTERNATING = "/plain"
"""After the name of a provider with LPC: the measurement whose steps alternate with those without LPC."""


def without_lpc(provider: str) -> str:
    """The provider with which one with LPC is compared."""
    return provider.removesuffix("-lpc")


def is_frozen(provider: str) -> bool:
    """Whether only the LPC head of a provider trains."""
    return provider.endswith(("frozen", "cached"))


def measurements(providers: list[str]) -> list[str]:
    """The providers, and the alternating measurements where both with and without LPC are among them."""
    both = [name for name in providers if name.endswith("-lpc") and without_lpc(name) in providers]
    return [*providers, *(name + ALTERNATING for name in both)]


class Skipped(Exception):
    """A provider that does not run here, and why."""
