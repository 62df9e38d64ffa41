"""The checkpoint from which a run starts: with `--load auto` the newest one that is sound."""

from __future__ import annotations

import json
import re
from pathlib import Path

from megatron_lpc.command_line import first_few, warn
from megatron_lpc.config import ConfigError
from megatron_lpc.training.checkpoint_folder import complete_checkpoints, holds_checkpoint, latest_name
from megatron_lpc.training.checkpoint_verification import damage, open_checkpoint
from megatron_lpc.training.first_rank import from_first_rank
from megatron_lpc.training.run_folder import is_restarted_in
from megatron_lpc.training.setup import RunContext


def starting_point(context: RunContext) -> Path | None:
    """The checkpoint to resume from: what `load` names; with `auto` the newest sound one under `save`, if there is one
    yet. A newer one that is damaged is named in a line. A run that torchrun has restarted goes on as with `auto`.

    Collectives: those of `damage`, for each checkpoint that is looked at.

    Raises:
        ConfigError: on all ranks alike; there is nothing, or nothing sound, where there should be; or `save` holds an
            earlier run, and this one does not resume it.
    """
    options = context.config.checkpoint
    save = Path(options.save) if options.save else None
    if options.load == "auto":
        assert save is not None
        return _newest_sound(save, context)
    resumed = _named(Path(options.load), context) if options.load else None
    if save is not None and (resumed is None or resumed.parent.resolve() != save.resolve()):
        restarted = json.loads(from_first_rank(lambda: json.dumps(is_restarted_in(save))))
        return (_newest_sound(save, context) if restarted else None) or resumed
    return resumed


def _named(path: Path, context: RunContext) -> Path:
    try:
        return open_checkpoint(path, context, resumes=True)
    except ConfigError as error:
        # An error is of one rank if the ranks do not see the same files: no collective here.
        others = [folder for folder in complete_checkpoints(path) if folder.name not in str(error)]
        hint = f"; --load {others[-1]} is an older one" if others else ""
        raise ConfigError(f"{error}{hint}") from error


def _newest_sound(root: Path, context: RunContext) -> Path | None:
    found = json.loads(from_first_rank(lambda: json.dumps(_candidates(root))))
    problems: list[str] = found["problems"]
    for name in found["names"]:
        of_this = damage(root / name, context, resumes=True)
        if not of_this:
            for problem in problems:
                warn(f"{problem}; the run resumes from {name}")
            return root / name
        problems.append(first_few(of_this, "files"))
    if problems:
        raise ConfigError(
            f"{root}: holds no sound checkpoint to resume from; start another run with another --save: "
            + "; ".join(problems)
        )
    return None


def _candidates(root: Path) -> dict[str, list[str]]:
    """`names` of checkpoints to try, one after the other; `problems` with the pointer.

    Checkpoints newer than the one that the pointer names are of another run, or of a save that did not end.
    """
    if not holds_checkpoint(root):
        return {"names": [], "problems": []}
    if (root / "metadata.json").is_file():
        return {"names": ["."], "problems": []}  # The folder of one checkpoint.
    complete = [folder.name for folder in reversed(complete_checkpoints(root))]
    pointer = root / "latest_checkpointed_iteration.txt"
    try:
        latest = latest_name(root)
    except OSError as error:
        return {"names": complete, "problems": [f"{pointer}: cannot be read ({error.strerror})"]}
    if latest is None:
        return {"names": complete, "problems": [f"{pointer}: is damaged, for it names no checkpoint"]}
    older = complete
    if re.fullmatch(r"iter_[0-9]+", latest):
        older = [name for name in complete if int(name.removeprefix("iter_")) < int(latest.removeprefix("iter_"))]
    if not (root / latest).is_dir():
        return {"names": older, "problems": [f"{pointer}: names {latest}, which is not there"]}
    return {"names": [latest, *older], "problems": []}
