"""Raw click data to a prepared data set: split, vocabularies, columns.

The rows pass through the disk once, as Parquet in a staging folder, and are then worked on one
column and a few million rows at a time, so that memory depends on the largest vocabulary rather
than on the number of rows (plus nine bytes a row for the split).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl

from mlet.atomic import atomic_directory
from mlet.data import layout
from mlet.data.checksums import checksums
from mlet.data.column_file import ColumnFile
from mlet.data.dense import write_dense
from mlet.data.encoding import explode
from mlet.data.extension import Extension
from mlet.data.groups import write_groups, write_kept
from mlet.data.schema import (
    SPLITS,
    DatasetSchema,
    FieldSchema,
    RawFormat,
    SplitName,
    SplitSchema,
)
from mlet.data.sharing import check_owners, check_shares, members_of
from mlet.data.source import (
    LABEL,
    PROBABILITY,
    WEIGHT,
    RawColumns,
    RawSource,
    field_column,
)
from mlet.data.split import SplitRule, assign, time_ranges
from mlet.data.staging import Report, Staged, stage
from mlet.data.vocabulary import (
    KnownCategories,
    Vocabulary,
    VocabularyBuilder,
    digest_categories,
)
from mlet.errors import ConfigError, DataError, RunError
from mlet.metrics import score, taken
from mlet.reading import write_sealed

__all__ = ["Report", "SplitRule", "TellTimes", "prepare"]

#: Called with the first and the last time of every split.
TellTimes: TypeAlias = Callable[[dict[SplitName, tuple[int, int]]], None]


def prepare(
    source: RawSource,
    out: Path,
    *,
    split: SplitRule | None = None,
    min_count: int | None = None,
    field_min_counts: Mapping[str, int] | None = None,
    extend: Path | None = None,
    overwrite: bool = False,
    report: Report = lambda what, done, total: None,
    tell_times: TellTimes = lambda times: None,
) -> DatasetSchema:
    """Turn raw data into a prepared data set at ``out``, which appears whole or not at all.

    Args:
        source: a reader's rows.
        split: how to divide them; by default the source's way, 80/10/10.
        min_count: training occurrences below which a category is "unknown or rare" (id 0); of
            fields that share a vocabulary, in all of them; 1 by default.
        field_min_counts: the same for single fields, by name.
        extend: a prepared data set whose vocabularies go on: its categories keep their ids, new
            ones come after them, counts and minimum counts are of both, and dense features are
            scaled as its are. The rows are the source's alone.
        overwrite: replace an existing data set, once the new one is complete.
        report: told of progress.
        tell_times: told the first and the last time of every split, where the source has times.

    Raises:
        DataError: the input is damaged or too small; names file and line.
        RunError: ``out`` exists and ``overwrite`` is false.
        ConfigError: the split, its shares or a minimum count cannot be used with this source; or
            its columns or minimum counts are not those of the data set that it is to extend.
        UserWarning: (warning) that data set did not keep the counts of its rare categories.
    """
    try:
        str(out).encode()
    except UnicodeEncodeError:
        raise RunError(f"{out!r}: the name is not UTF-8; choose another directory") from None
    rule = split or SplitRule()
    by = rule.by or source.default_split
    columns = source.columns
    names = (*columns.categorical, *columns.multi_valued)
    check_shares(columns.shares, names)
    check_owners(columns.shares, field_min_counts or {})
    base = None if extend is None else Extension(extend, source, out)
    if base is not None:
        base.check_min_counts(min_count, field_min_counts or {})
        least, names = base.min_counts, base.names
    else:
        least = _min_counts(
            names, columns.shares, 1 if min_count is None else min_count, field_min_counts or {}
        )
    rule.check(source)
    with atomic_directory(out, overwrite=overwrite) as building:
        staged = stage(source, building / ".staging", report)
        assignment = assign(staged, by, rule)
        if columns.time:
            tell_times(time_ranges(staged, assignment))
        layout.create_folders(building)
        steps = len(names) + 1
        found: dict[str, FieldSchema] = {}
        report("encoding fields", 0, steps)
        for owner in least:
            members = members_of(columns.shares, owner)
            bags = {name: name in columns.multi_valued for name in members}
            vocabulary = _build_vocabulary(
                staged, assignment, bags, least[owner], base.known(owner) if base else None
            )
            vocabulary.write(layout.vocabulary(building, owner), layout.rare(building, owner))
            for name in members:
                encode = _encode_bags if bags[name] else _encode_field
                encode(staged, assignment, building, name, vocabulary)
                found[name] = _field_schema(
                    name, vocabulary, least[owner], multi_valued=bags[name],
                    shares=columns.shares.get(name),
                )  # fmt: skip
                report("encoding fields", len(found), steps)
        dense = write_dense(
            staged, assignment, building, columns, base.schema.dense if base else None
        )
        if columns.group is not None:
            write_groups(staged, assignment, building)
        write_kept(staged, assignment, building, columns.kept)
        known = getattr(source, "format", None)
        schema = DatasetSchema(
            source=source.description,
            format=known if isinstance(known, RawFormat) else None,
            split_by=by,
            seed=rule.seed,
            dense=dense,
            fields=[found[name] for name in names],
            splits=_write_labels(staged, assignment, building, columns),
            extends=base.earlier if base else None,
            group=columns.group,
            kept=list(columns.kept),
        )
        report("encoding fields", steps, steps)
        shutil.rmtree(staged.folder)
        schema = schema.model_copy(update={"checksums": checksums(building)})
        write_sealed(building / layout.SCHEMA, schema.model_dump(mode="json"))
    return schema


def _min_counts(
    fields: Sequence[str], shares: Mapping[str, str], min_count: int, by_field: Mapping[str, int]
) -> dict[str, int]:
    """The minimum count of every field that has a vocabulary of its own."""
    unknown = sorted(set(by_field) - set(fields))
    if unknown:
        raise ConfigError(
            f"min_count for {unknown[0]!r}: no such field; the fields are {', '.join(fields)}"
        )
    own = [name for name in fields if name not in shares]
    result = dict.fromkeys(own, min_count) | dict(by_field)
    for name, count in result.items():
        if count < 1:
            raise ConfigError(f"min_count of field {name!r} must be at least 1, got {count}")
    return result


def _train_rows(assignment: npt.NDArray[np.uint8], chunk: slice) -> pl.Series:
    return pl.Series(assignment[chunk] == 0)


def _build_vocabulary(
    staged: Staged,
    assignment: npt.NDArray[np.uint8],
    bags: Mapping[str, bool],
    min_count: int,
    known: KnownCategories | None,
) -> Vocabulary:
    """From the training rows alone, of fields that may be multi-valued, and what was known."""
    builder = VocabularyBuilder()
    for name, multi_valued in bags.items():
        for chunk, frame in staged.chunks(field_column(name)):
            column = frame[field_column(name)].filter(_train_rows(assignment, chunk))
            builder.add(explode(column) if multi_valued else column)
    return builder.build(min_count, known)


def _field_schema(
    name: str, vocabulary: Vocabulary, min_count: int, *, multi_valued: bool, shares: str | None
) -> FieldSchema:
    return FieldSchema(
        name=name,
        num_categories=len(vocabulary),
        multi_valued=multi_valued,
        min_count=min_count,
        total_categories=vocabulary.total_categories,
        digest=digest_categories(vocabulary.table),
        shares=shares,
    )


def _encode_field(
    staged: Staged,
    assignment: npt.NDArray[np.uint8],
    root: Path,
    name: str,
    vocabulary: Vocabulary,
) -> None:
    outputs = [
        ColumnFile(layout.ids(root, split, name), np.int32, int((assignment == place).sum()))
        for place, split in enumerate(SPLITS)
    ]
    for chunk, frame in staged.chunks(field_column(name)):
        ids = vocabulary.encode(frame[field_column(name)])
        for place, output in enumerate(outputs):
            output.append(ids[assignment[chunk] == place])


def _encode_bags(
    staged: Staged,
    assignment: npt.NDArray[np.uint8],
    root: Path,
    name: str,
    vocabulary: Vocabulary,
) -> None:
    lengths = np.concatenate(
        [frame.to_series().list.len().to_numpy() for _, frame in staged.chunks(field_column(name))]
    )
    outputs = []
    for place, split in enumerate(SPLITS):
        offsets = np.concatenate([[0], np.cumsum(lengths[assignment == place], dtype=np.int64)])
        np.save(layout.bag_offsets(root, split, name), offsets)
        outputs.append(ColumnFile(layout.bag_values(root, split, name), np.int32, int(offsets[-1])))
    for chunk, frame in staged.chunks(field_column(name)):
        bags = frame[field_column(name)]
        for place, output in enumerate(outputs):
            output.append(
                vocabulary.encode(explode(bags.filter(pl.Series(assignment[chunk] == place))))
            )


def _write_labels(
    staged: Staged, assignment: npt.NDArray[np.uint8], root: Path, columns: RawColumns
) -> dict[SplitName, SplitSchema]:
    def gather(column: str) -> npt.NDArray[np.float64]:
        return np.concatenate([frame[column].to_numpy() for _, frame in staged.chunks(column)])

    labels = gather(LABEL)
    truth = gather(PROBABILITY) if columns.probability else None
    weights = gather(WEIGHT).astype(np.float32) if columns.weight else None
    splits = {}
    for place, name in enumerate(SPLITS):
        rows = assignment == place
        clicks = labels[rows]
        np.save(layout.labels(root, name), clicks)
        counting, mine = clicks, taken(weights, rows)
        if mine is not None:
            np.save(layout.weights(root, name), mine)
            counting = clicks[mine > 0]
            if not len(counting):
                raise DataError(f"the {name} split has only weights of 0; weigh some of its rows")
        if name != "train" and len(np.unique(counting)) < 2:
            raise DataError(
                f"the {name} split has only labels {int(counting[0])}, so AUC is undefined; "
                f"give it more rows or split at random"
            )
        bayes: dict[str, float] = {}
        if truth is not None:
            np.save(layout.probabilities(root, name), truth[rows])
            best = score(clicks, truth[rows], mine)
            bayes = {"bayes_auc": best.auc, "bayes_logloss": best.logloss}
        splits[name] = SplitSchema(
            rows=len(clicks),
            click_rate=float(clicks.mean()),
            mean_weight=None if mine is None else float(mine.mean(dtype=np.float64)),
            **bayes,
        )
    return splits
