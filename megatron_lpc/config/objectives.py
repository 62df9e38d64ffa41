"""What the rules between options need to know of the preference objectives."""

from __future__ import annotations

OBJECTIVES_WITH_REFERENCE = ("dpo", "ipo")
"""Values of `loss_type` that compare the policy with a frozen reference."""
