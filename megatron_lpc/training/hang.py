"""Which rank a run waits for, in a sentence, from what all ranks last said of themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_lpc.command_line import first_few
from megatron_lpc.training.heartbeat import BEAT
from megatron_lpc.training.phases import Beat, space_of_processes
from megatron_lpc.training.process_stat import process_stat

_SILENT_SECONDS = 6 * BEAT
"""After which a rank of another host counts as silent: clocks of hosts differ by a second or two."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What is known about the ranks of a run."""

    culprits: dict[Beat, str]
    """Rank that is not well -> what is wrong with it, as a predicate."""
    others: list[Beat]

    def sentence(self) -> str:
        """Names each culprit with its last step, and says in what the others wait."""
        named = [
            f"rank {beat.rank} (host {beat.host}, process {beat.pid}) {why}" for beat, why in self.culprits.items()
        ]
        culprit = next(iter(self.culprits))
        place = f"its last known step is {culprit.step}, and it was in {_where(culprit)}"
        waiting: dict[str, list[int]] = {}
        for beat in self.others:
            waiting.setdefault(f"{_where(beat)} after step {beat.step}", []).append(beat.rank)
        waits = [f"{_ranks(ranks)} {'waits' if len(ranks) == 1 else 'wait'} in {at}" for at, ranks in waiting.items()]
        return "; ".join([f"{first_few(named, 'ranks')}: {place}", *waits])


def unwell(beats: Sequence[Beat], now: float) -> Finding | None:
    """The ranks that have ended, are stopped or are silent, if any.

    Args:
        beats: the latest line of each rank.
        now: seconds, by the clock of this host.
    """
    signs = {beat: _sign(beat, now) for beat in beats if not beat.speaks}
    return _finding(beats, {beat: sign for beat, sign in signs.items() if sign})


def behind(beats: Sequence[Beat]) -> Finding | None:
    """The ranks that are not as far as others, if any; argument as for `unwell`."""
    if not beats:
        return None
    least, most = min(beat.phases for beat in beats), max(beat.phases for beat in beats)
    late = [beat for beat in beats if beat.phases == least < most and not beat.speaks]
    return _finding(beats, dict.fromkeys(late, "is behind the others"))


def _finding(beats: Sequence[Beat], culprits: dict[Beat, str]) -> Finding | None:
    if not culprits:
        return None
    return Finding(culprits=culprits, others=[beat for beat in beats if beat not in culprits])


def _sign(beat: Beat, now: float) -> str | None:
    """What is wrong with a rank, as a predicate."""
    if beat.processes == space_of_processes():
        state = _state(beat.pid)
        if state in ("", "Z", "X"):
            return "has ended without a word"
        if state in "Tt":
            return "is stopped (SIGSTOP)"
    if now - beat.time > _SILENT_SECONDS:
        return f"has given no sign of life for {now - beat.time:.0f} s"
    return None


def _state(pid: int) -> str:
    """The letter of a process of this host, as `ps` shows it; empty where there is none."""
    try:
        return process_stat(pid)[0]
    except OSError:
        return ""


def _where(beat: Beat) -> str:
    return f"{beat.phase} ({beat.place})" if beat.place else beat.phase


def _ranks(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    names = [str(rank) for rank in ranks]
    return f"ranks {first_few(names, 'ranks')}" if len(names) > 3 else f"ranks {', '.join(names)}"
