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

from mlet.atomic import atomic_directory
from mlet.data import layout
from mlet.data.categories import (
    BagSizes,
    Known,
    begin_bag_sizes,
    begin_bags,
    begin_counting,
    begin_ids,
    field_ids,
)
from mlet.data.checksums import checksums
from mlet.data.dense import write_dense
from mlet.data.extension import Extension
from mlet.data.groups import write_groups, write_kept
from mlet.data.labels import write_labels
from mlet.data.schema import DatasetSchema, FieldSchema, RawFormat, SplitName
from mlet.data.sharing import check_owners, check_shares, members_of
from mlet.data.source import RawColumns, RawSource, field_column
from mlet.data.split import Division, SplitRule, divide, time_ranges
from mlet.data.staging import Report, check_parts, stage
from mlet.data.vocabulary import Vocabulary, VocabularyBuilder, digest_categories
from mlet.data.workers import Here, Promise, Workers, begun_ahead, stopped_on_failure
from mlet.errors import ConfigError, RunError
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
    workers: Workers | None = None,
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
        workers: who does the work; this process by default. The data set is the same to the byte.

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
    workers = workers or Here()
    if not workers.here:
        check_parts(source)
    with atomic_directory(out, overwrite=overwrite) as building, stopped_on_failure(workers):
        staged = stage(source, building / ".staging", workers, report)
        division = divide(staged, by, rule)
        if columns.time:
            tell_times(time_ranges(division))
        layout.create_folders(building)
        steps = len(names) + 1
        report("encoding fields", 0, steps)
        found = _write_fields(
            workers, division, building, columns, least, base,
            lambda done: report("encoding fields", done, steps),
        )  # fmt: skip
        dense = write_dense(
            workers, division, building, columns, base.schema.dense if base else None
        )
        if columns.group is not None:
            write_groups(workers, division, building, staged.folder)
        write_kept(workers, division, building, columns.kept, staged.folder)
        known = getattr(source, "format", None)
        schema = DatasetSchema(
            source=source.description,
            format=known if isinstance(known, RawFormat) else None,
            split_by=by,
            seed=rule.seed,
            dense=dense,
            fields=[found[name] for name in names],
            splits=write_labels(workers, division, building, columns),
            extends=base.earlier if base else None,
            group=columns.group,
            kept=list(columns.kept),
        )
        report("encoding fields", steps, steps)
        shutil.rmtree(staged.folder)
        schema = schema.model_copy(update={"checksums": checksums(building, workers)})
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


def _write_fields(
    workers: Workers,
    division: Division,
    root: Path,
    columns: RawColumns,
    least: Mapping[str, int],
    base: Extension | None,
    tell: Callable[[int], None],
) -> dict[str, FieldSchema]:
    """Count, number and write all fields; ``least`` are the minimum counts of those that have a
    vocabulary of their own, and ``tell`` is told how many fields are done."""
    scratch = division.chunks[0].assignment.parent
    members = {owner: members_of(columns.shares, owner) for owner in least}
    order = {owner: place for place, owner in enumerate(least)}

    def begin(owner: str) -> Promise[tuple[VocabularyBuilder, dict[str, list[BagSizes]]]]:
        bags = {name: name in columns.multi_valued for name in members[owner]}
        fields = {field_column(name): bag for name, bag in bags.items()}
        counting = begin_counting(workers, division, fields, scratch / f"counts-{order[owner]}")
        sizes = {
            name: begin_bag_sizes(workers, division, name) for name, bag in bags.items() if bag
        }
        return lambda: (counting(), {name: promise() for name, promise in sizes.items()})

    found: dict[str, FieldSchema] = {}
    writing: list[tuple[int, list[Promise[None]]]] = []
    for owner, (builder, sizes) in begun_ahead(workers, begin, least):
        vocabulary = builder.build(least[owner], base.known(owner) if base else None)
        del builder  # its counts are as large
        file = layout.vocabulary(root, owner)
        vocabulary.write(file, layout.rare(root, owner))
        known: Known = vocabulary if workers.here else file
        for name in members[owner]:
            if name in sizes:
                promises = begin_bags(workers, division, root, name, sizes[name], known)
            else:
                promises = begin_ids(workers, division, field_ids(root, division, name), known)
            found[name] = _field_schema(
                name, vocabulary, least[owner], multi_valued=name in sizes,
                shares=columns.shares.get(name),
            )  # fmt: skip
            writing.append((len(found), promises))
            if workers.here:
                tell(len(found))
    for done, promises in writing:
        for promise in promises:
            promise()
        tell(done)
    return found
