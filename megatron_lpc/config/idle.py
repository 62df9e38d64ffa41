"""Options that would have no effect: set away from their default they are refused, never silently ignored."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_lpc.config.metadata import IdleRule
from megatron_lpc.config.options import Option, all_options, changed_options, shown
from megatron_lpc.config.schema import Config


def idle_options(config: Config) -> Iterator[str]:
    """A sentence for every option that is set away from its default and has no effect beside the others."""
    for option, rule in find_idle(config):
        value = shown(option.value(config))
        default = shown(option.default)
        yield f"{option.flag} = {value}: has no effect {rule.reason}; leave it at its default, {default}"


def find_idle(config: Config) -> Iterator[tuple[Option, IdleRule]]:
    """Every option that is set away from its default and has no effect, with the first rule that says so."""
    changed = changed_options(config)
    for option in all_options().values():
        applying = [rule for rule in option.idle if rule.applies(config)]
        if option.name in changed and applying:
            yield option, applying[0]
