"""Trained weights together with the data set they belong to."""

from __future__ import annotations

from pathlib import Path

from mlet.data import PreparedDataset
from mlet.data.identity import check_data
from mlet.errors import RunError
from mlet.export import CollapsedModel, load_collapsed, load_collapsed_model
from mlet.models import CTRModel, build_model
from mlet.table_files import tables_in
from mlet.training.config import RunConfig
from mlet.training.memory import table_files
from mlet.training.run import RunDirectory


def load_trained(run: RunDirectory, data: Path | None = None) -> tuple[CTRModel, PreparedDataset]:
    """The best weights of a run so far, as trained, and a data set to use them with.

    Args:
        run: where they are.
        data: a data set with the vocabularies of the run's; None takes the run's own, which must
            then be the one it was.

    Raises:
        RunError: the directory is no run, has no validation yet, or does not belong to the data.
    """
    config = run.config()
    dataset = _dataset(run, config, data)
    files = table_files(config, run.root)
    with tables_in(files):
        model = build_model(config.model, dataset.schema)
    try:
        model.load_state_dict(run.load_best(mapped=files is not None)["model"])
    except (AttributeError, KeyError, RuntimeError, TypeError):
        raise RunError(
            f"{run.root}: the weights in its best checkpoint are not of the model in "
            f"{run.config_file.name}; train the run again"
        ) from None
    return model.eval(), dataset


def _dataset(run: RunDirectory, config: RunConfig, data: Path | None) -> PreparedDataset:
    """A run's data set, or another one with its vocabularies."""
    if data is None and not config.data.exists():
        raise RunError(
            f"{run.root}: its data set {config.data} is not there any more; if it has moved, say "
            f"where to with --data"
        )
    dataset = PreparedDataset(config.data if data is None else data)
    run.check_data(dataset, same_rows=data is None)
    return dataset


def load_served(path: Path) -> CollapsedModel:
    """The collapsed model of a finished run's directory, or of a file.

    Raises:
        RunError: the directory is no run, has no such model yet, or that of another run; the file
            cannot be read.
    """
    if not path.is_dir():
        return load_collapsed_model(path)
    run = RunDirectory(path)
    config = run.config()
    if not run.finished or not run.model_file.exists():
        raise RunError(
            f"{run.model_file}: not there yet; finish the run with mlet train --resume {run.root}, "
            f"or name a file that mlet collapse {run.root} wrote"
        )
    with tables_in(table_files(config, run.root)):
        found = load_collapsed_model(run.model_file)
    run.check_model(found.schema)
    return found


def load_for_evaluation(path: Path, data: Path | None) -> tuple[CTRModel, PreparedDataset]:
    """A run directory's model, or a collapsed file's, with the data set to use.

    The model is collapsed, as it is served: that of a finished run is its file's.

    Raises:
        RunError, DataError: either cannot be read, or they do not belong together.
    """
    if path.is_dir():
        run = RunDirectory(path)
        # Of mlet 0.1 a file may hold codes of fewer bits than what its runs are evaluated in.
        own = run.finished and run.model_file.exists() and run.precision() == "float32"
        if not own:
            trained, dataset = load_trained(run, data)
            return trained.collapse(), dataset
        config = run.config()
        dataset = _dataset(run, config, data)
        with tables_in(table_files(config, run.root)):
            model, _, schema = load_collapsed(run.model_file)
        run.check_model(schema)
        return model, dataset
    model, _, schema = load_collapsed(path)
    if data is None:
        raise RunError(f"{path} is a collapsed model: name its data set with --data")
    dataset = PreparedDataset(data)
    check_data(schema, dataset, path)
    return model, dataset
