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
    "shared-packed-lpc-exact-2": "shared prompt, packed, LPC, exact inference, 2 codes",
    "shared-packed-lpc-exact-8": "shared prompt, packed, LPC, exact inference, 8 codes",
    "shared-packed-lpc-exact-64": "shared prompt, packed, LPC, exact inference, 64 codes",
}
"""Names on the command line, and in the table."""
_EXACT, _AMORTIZED = "-lpc-exact-", "-lpc-amortized-"
DEFAULT_PROVIDERS = [name for name in PROVIDERS if _EXACT not in name]
"""Those that are measured unless others are named."""
FULL_LPC = "separate-lpc"
"""What the providers with a frozen backbone are compared with."""
ALTERNATING = "/plain"
"""After the name of a provider with LPC: the measurement whose steps alternate with those of its `counterpart`."""


def counterpart(provider: str) -> str:
    """What a provider with LPC is compared with: the same without LPC, or amortized inference with as many codes
    where inference is exact.
    """
    return provider.replace(_EXACT, _AMORTIZED) if is_exact(provider) else provider.removesuffix("-lpc")


def is_exact(provider: str) -> bool:
    """Whether a provider infers the codes exactly."""
    return _EXACT in provider


def num_codes(provider: str) -> int | None:
    """K where the name of a provider says it."""
    last = provider.rpartition("-")[2]
    return int(last) if last.isdigit() else None


def is_frozen(provider: str) -> bool:
    """Whether only the LPC head of a provider trains."""
    return provider.endswith(("frozen", "cached"))


def measurements(providers: list[str]) -> list[str]:
    """The providers, and the alternating measurements: of exact inference, and where both with and without LPC are
    among them.
    """
    compared = [
        name for name in providers if is_exact(name) or (name.endswith("-lpc") and counterpart(name) in providers)
    ]
    return [*providers, *(name + ALTERNATING for name in compared)]


class Skipped(Exception):
    """A provider that does not run here, and why."""
