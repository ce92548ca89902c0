"""With what settings a run goes on."""

from __future__ import annotations

from mlet.errors import RunError
from mlet.training.config import RunConfig
from mlet.training.run import RunDirectory


def with_epochs(run: RunDirectory, config: RunConfig, epochs: int) -> RunConfig:
    """Let a run go on to so many epochs, a finished one too; its settings from now on.

    Raises:
        RunError: a finished run cannot: it stopped early, has had as many, or its state is gone.
    """
    training = config.training.model_copy(update={"epochs": epochs})
    changed = config.model_copy(update={"training": training})
    if run.finished:
        _check_finished(run, epochs)
        # In this order: killed in between, the run ends once more as it had.
        run.summary_file.unlink()
    run.write_config(changed)
    return changed


def _check_finished(run: RunDirectory, epochs: int) -> None:
    summary = run.summary()
    if summary.stopped == "early":
        raise RunError(
            f"{run.root}: training stopped early, in epoch {summary.epochs}, so that more epochs "
            f"would not begin; train again with a larger training.patience"
        )
    if epochs <= summary.epochs:
        raise RunError(
            f"{run.root}: the run has had {summary.epochs} epochs; --epochs {epochs} asks for no "
            f"more"
        )
    if not run.has_state:
        raise RunError(
            f"{run.root}: the state to go on from was removed when the run ended; begin a new run "
            f"with its weights (--set start={run.root}), or train it anew with --set "
            f"training.keep_state=true"
        )
