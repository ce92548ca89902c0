"""Raw files to a file of scores, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import polars as pl

from mlet.data.compressed import STDIN
from mlet.data.files import find_files
from mlet.data.readers.rows import open_rows
from mlet.data.schema import RawFormat
from mlet.data.source import RawRows, rows_of
from mlet.data.staging import Report
from mlet.errors import ConfigError, DataError
from mlet.scoring.predictor import Predictor
from mlet.scoring.writing import check_output, score_file
from mlet.training.alike import SERVED_ROWS

#: The column of the scores.
SCORE = "score"


def score_files(
    model: Path,
    files: Sequence[Path],
    out: Path,
    *,
    keep: Sequence[str] = (),
    format: RawFormat | None = None,
    overwrite: bool = False,
    report: Report = lambda what, done, total: None,
) -> int:
    """Score raw rows, with a label or without one, and write a row for each, in their order.

    Args:
        model: a finished run, or a file that ``mlet collapse`` wrote.
        files: files, folders or patterns; ``-`` is standard input.
        out: the file to write, ``.parquet`` or ``.csv``: the kept columns, and ``score``.
        keep: raw columns to pass through.
        format: of the files; by default that of the training data.
        overwrite: replace ``out`` if it exists, once all rows are scored.
        report: told of progress.

    Returns:
        How many rows were scored.

    Raises:
        RunError: the model cannot be used, or ``out`` not be written.
        ConfigError: settings contradict each other.
        DataError: the input is damaged, empty, or not of the kind the model was trained on.
    """
    check_output(out, overwrite=overwrite)
    repeated = [name for name in keep if keep.count(name) > 1 or name == SCORE]
    if repeated:
        raise ConfigError(f"--keep {repeated[0]!r}: there would be two columns of that name")
    predictor = Predictor.load(model)
    named = [STDIN if str(path) == "-" else path for path in files]
    if named.count(STDIN) > 1:
        raise ConfigError("standard input (-) can be read but once")
    found = [file.path for file in find_files(named)]
    if out.exists() and any(path.exists() and path.samefile(out) for path in found):
        raise ConfigError(f"{out}: is among the files to be scored; choose another --out")
    source = open_rows(predictor.schema, named, format, predictor.as_written)
    done = 0
    report("scoring", 0, None)
    with score_file(out) as writer:
        for features, kept in _in_whole_batches(rows_of(source, keep), predictor, out):
            scores = pl.Series(SCORE, predictor.score(features))
            writer.append(pl.DataFrame([*kept.get_columns(), scores]))
            done += len(features)
            report("scoring", done, None)
        if not done:
            raise DataError(
                f"{', '.join(map(str, named))}: no rows to score; is it the right file?"
            )
    report("scoring", done, done)
    return done


def _in_whole_batches(
    rows: Iterable[RawRows], predictor: Predictor, out: Path
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Features and kept columns, cut so that batches are the same however files are."""
    left: tuple[pl.DataFrame, pl.DataFrame] | None = None
    for block in rows:
        features, kept = predictor.encoder.check(block), block.kept
        _check_kept(block, left and left[1], out)
        if left is not None:
            features, kept = pl.concat([left[0], features]), pl.concat([left[1], kept])
        whole = len(features) - len(features) % SERVED_ROWS
        if whole:
            yield features[:whole], kept[:whole]
        left = features[whole:], kept[whole:]
    if left is not None and len(left[0]):
        yield left


def _check_kept(block: RawRows, before: pl.DataFrame | None, out: Path) -> None:
    """Refuse columns that one file cannot hold.

    Raises:
        DataError: they are of several types, or lists that were to be CSV.
    """
    for name, dtype in block.kept.schema.items():
        if out.suffix == ".csv" and dtype.is_nested():
            raise DataError(
                f"{block.place}: column {name!r} of type {dtype} cannot be kept in CSV; write "
                f".parquet"
            )
        if before is not None and before.schema[name] != dtype:
            raise DataError(
                f"{block.place}: column {name!r} is {dtype}, in earlier files "
                f"{before.schema[name]}; score them one by one, or do not keep it"
            )
