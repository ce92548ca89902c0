"""Several processes of one command on this machine, by torchrun."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from mlet.errors import ConfigError, RunError


def launch(processes: int, words: Sequence[str]) -> int:
    """Run ``mlet WORDS`` as ``torchrun --nproc-per-node PROCESSES -m mlet WORDS`` would.

    If one process ends with an error, the others are ended.

    Returns:
        The exit code: 0, or that of the process that failed first.

    Raises:
        ConfigError: this process is one of several already.
        RunError: one was killed.
    """
    from torch.distributed import is_torchelastic_launched
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    if is_torchelastic_launched():
        raise ConfigError("torchrun has started several processes: leave --processes out")
    # Of a process that ends, it would tell in a page what the process has said itself.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        main(["--standalone", "--nproc-per-node", str(processes), "-m", "mlet", *words])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise RunError(
                f"process {rank} of {processes} was killed by signal {-failure.exitcode} (out of "
                f"memory?); the run's last checkpoint is whole: go on with mlet train --resume RUN"
            ) from None
        return failure.exitcode
    except (KeyboardInterrupt, SignalException):
        return 130
    return 0


def without_option(words: Sequence[str], name: str) -> list[str]:
    """The words of a command line without an option and its value."""
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word == name:
            skip = True
        elif not word.startswith(f"{name}="):
            kept.append(word)
    return kept
