"""``mlet prepare``: raw click data to a prepared data set."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import polars as pl
import typer
from typer.core import TyperGroup

from mlet.cli.console import counting, say, show_table
from mlet.data import DatasetSchema, PreparedDataset, SplitRule
from mlet.data import prepare as prepare_source
from mlet.data.bad_rows import BadRows
from mlet.data.guess import guess_schema
from mlet.data.readers import (
    READERS,
    LibFMSource,
    MovieLensSource,
    TableSchema,
    TableSource,
)
from mlet.data.readers.registry import open_raw
from mlet.data.schema import SplitName
from mlet.data.source import RawSource, SplitBy
from mlet.data.times import kind_of, show_time
from mlet.data.workers import Workers
from mlet.errors import ConfigError

if TYPE_CHECKING:
    from mlet.task import Metric


class _Readers(TyperGroup):
    """Beside the commands of this file, one for each reader of another package, by its name."""

    def list_commands(self, ctx: Any) -> list[str]:
        own = super().list_commands(ctx)
        return [*own, *(name for name in READERS if name not in own)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        own = super().get_command(ctx, cmd_name)
        if own is not None or (cmd_name not in list(READERS) and ":" not in cmd_name):
            return own
        app = typer.Typer(context_settings=ctx.command.context_settings)
        app.command(name=cmd_name, help=f"Files of the reader {cmd_name}.")(
            _command(_of_files(cmd_name))
        )
        return typer.main.get_command(app)


prepare_app = typer.Typer(
    cls=_Readers,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Turn raw click data into a prepared data set. Inputs may be plain, .gz or .zst. The "
    "reader of another package is called as package.module:Reader, or by the name it offers.",
)

Files: TypeAlias = Annotated[
    list[Path], typer.Argument(help="Files, folders or patterns, pooled in this order.")
]
Out: TypeAlias = Annotated[Path, typer.Option("--out", "-o", help="Directory to create.")]
HowToSplit: TypeAlias = Annotated[
    SplitBy | None,
    typer.Option("--split", help="How to split; default: as given, or by time, if it is."),
]
Valid: TypeAlias = Annotated[float, typer.Option(help="Share of rows for validation.")]
Test: TypeAlias = Annotated[float, typer.Option(help="Share of rows for the test split.")]
Seed: TypeAlias = Annotated[int, typer.Option(help="Seed of a random split.", min=0)]
MinCount: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        help="Categories seen less often in training become 'unknown or rare': N for all fields, "
        "FIELD=N for one. Repeatable. Default: 1, or as in --extend."
    ),
]
Extend: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="A prepared data set whose vocabularies go on: known categories keep their ids, new "
        "ones come after them, counts add up, dense features are scaled as there. The new data set "
        "holds the new rows alone; mlet train NEW --from RUN goes on with a model on them.",
    ),
]
On: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="ray[=ADDRESS]",
        help="Share the work: 'ray' among processes of this machine, 'ray=ADDRESS' among those of "
        "a Ray cluster (ray=auto: of the one that runs here), whose machines all see the files and "
        "--out's folder. The data set is the same, to the byte.",
    ),
]
Overwrite: TypeAlias = Annotated[bool, typer.Option("--overwrite", help="Replace DIR.")]


def _prepare(
    source: RawSource,
    *,
    out: Out,
    split: HowToSplit = None,
    valid: Valid = 0.1,
    test: Test = 0.1,
    seed: Seed = 0,
    min_count: MinCount = None,
    extend: Extend = None,
    overwrite: Overwrite = False,
    on: On = None,
) -> None:
    default, by_field = _parse_min_counts(min_count or [])
    rule = SplitRule(by=split, valid=valid, test=test, seed=seed)
    times: dict[SplitName, tuple[int, int]] = {}
    with _workers(on) as workers, counting() as report:
        schema = prepare_source(
            source,
            out,
            split=rule,
            min_count=default,
            field_min_counts=by_field,
            extend=extend,
            overwrite=overwrite,
            report=report,
            tell_times=times.update,
            workers=workers,
        )
    print_schema(schema, out, _shown(times, source))
    if extend is not None:
        _print_new_categories(PreparedDataset(extend).schema, schema, extend)
    if isinstance(source, TableSource) and source.bad_rows is not None:
        _print_bad_rows(source.bad_rows)


def _workers(on: str | None) -> AbstractContextManager[Workers | None]:
    """Who is to work, by ``--on``; None is this process."""
    if on is None:
        return nullcontext()
    engine, equals, address = on.partition("=")
    if engine != "ray" or bool(equals) != bool(address):
        raise ConfigError(f"--on {on!r}: expected ray or ray=ADDRESS")
    from mlet.data.ray_workers import RayWorkers

    return RayWorkers(address or None)


def _shown(
    times: dict[SplitName, tuple[int, int]], source: RawSource
) -> dict[SplitName, tuple[str, str]]:
    """First and last times as a person reads them."""
    if not times:
        return {}
    kind = source.time_kind if isinstance(source, TableSource) else None
    kind = kind or kind_of(pl.Series([time for ends in times.values() for time in ends]))
    return {name: (show_time(a, kind), show_time(b, kind)) for name, (a, b) in times.items()}


def _print_new_categories(before: DatasetSchema, now: DatasetSchema, extended: Path) -> None:
    """What the vocabularies have that they had not."""
    known = {field.name: field.num_categories for field in before.fields}
    more = {field.name: field.num_categories - known[field.name] for field in now.vocabulary_fields}
    listed = ", ".join(f"{name} {count:,}" for name, count in more.items() if count)
    say(
        f"extends {extended}: {sum(more.values()):,} new categories{listed and f' ({listed})'}; "
        f"counts are of {now.counted_rows:,} training rows"
    )


def _print_bad_rows(bad_rows: BadRows) -> None:
    """What was left out, by reason, with the first of each."""
    if not bad_rows.total:
        say("no row was skipped")
        return
    rows = [
        (reason, bad_rows.first[reason], f"{count:,}") for reason, count in bad_rows.counts.items()
    ]
    title = f"{bad_rows.total:,} rows skipped, of {bad_rows.allowed:,} that may be"
    show_table(title, ("reason", "the first", "rows"), rows, left=2)


def _parse_min_counts(options: list[str]) -> tuple[int | None, dict[str, int]]:
    """``["2", "user=5"]``: the default, if it is given, and the exceptions."""
    default: int | None = None
    by_field = {}
    for option in options:
        field, equals, text = option.rpartition("=")
        if not text.isdecimal():
            raise ConfigError(f"--min-count {option!r}: expected N or FIELD=N")
        if equals:
            by_field[field] = int(text)
        else:
            default = int(text)
    return default, by_field


def print_schema(
    schema: DatasetSchema, out: Path, times: Mapping[SplitName, tuple[str, str]] | None = None
) -> None:
    """What was prepared, for a person; the first and last time of every split, where known."""
    known = _known_metrics(schema)
    ends = ("from", "to") if times else ()
    weights = ("mean weight",) if schema.weighted else ()
    best_known = (f"best possible {m.label}" for m in known)
    columns = ("split", "rows", "clicks", *weights, *ends, *best_known)
    rows = []
    for name, split in schema.splits.items():
        best = [f"{split.best[metric.name]:.4f}" for metric in known]
        when = times[name] if times else ()
        weight = () if split.mean_weight is None else (f"{split.mean_weight:.6g}",)
        rows.append((name, f"{split.rows:,}", f"{split.click_rate:.2%}", *weight, *when, *best))
    show_table(f"{schema.source}, split by {schema.split_by}", columns, rows)
    say(
        f"{len(schema.fields)} categorical fields with {schema.num_categories:,} categories, "
        f"{len(schema.dense)} dense features -> {out}",
    )


def _known_metrics(schema: DatasetSchema) -> list[Metric]:
    """Those whose best value is known, as of synthetic clicks."""
    if not schema.splits["test"].best:
        return []
    from mlet.task import TASKS  # of torch, which takes a second and prepares nothing

    task = TASKS["binary"]()
    return [metric for metric in task.metrics if metric.name in schema.splits["test"].best]


def _command(source: Callable[..., RawSource]) -> Callable[..., None]:
    """Prepares what ``source`` reads: its own parameters, then those of all readers."""
    own = list(inspect.signature(source, eval_str=True).parameters.values())
    shared = list(inspect.signature(_prepare, eval_str=True).parameters.values())[1:]

    def command(**options: Any) -> None:
        read = source(**{parameter.name: options.pop(parameter.name) for parameter in own})
        _prepare(read, **options)

    # What Typer makes options of.
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *shared)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = source.__doc__
    return command


def _of_files(reader: str) -> Callable[[list[Path]], RawSource]:
    """A reader that takes nothing but files, by its name."""

    def source(files: Files) -> RawSource:
        return open_raw(reader, files)

    return source


prepare_app.command(
    "criteo",
    help="Criteo-Kaggle's train.txt or the 1 TB logs' day_0.gz …: label, 13 integers, 26 "
    "categories. Several day files are taken in the order of their days, and split by --split "
    "last-day: the last day halved into validation and test.",
)(_command(_of_files("criteo")))
prepare_app.command("avazu", help="Avazu's train.csv.")(_command(_of_files("avazu")))


@prepare_app.command("movielens")
@_command
def _movielens(
    folder: Annotated[Path, typer.Argument(help="Folder with ratings and movies, .csv or .dat.")],
) -> RawSource:
    """MovieLens (ml-latest, 20m, 25m, 32m, 1m); a click is a rating of 4 or more."""
    return MovieLensSource(folder)


@prepare_app.command("libfm")
@_command
def _libfm(
    files: Annotated[list[Path] | None, typer.Argument(help="Files to pool and split.")] = None,
    train_file: Annotated[Path | None, typer.Option(help="Published training file.")] = None,
    valid_file: Annotated[Path | None, typer.Option(help="Published validation file.")] = None,
    test_file: Annotated[Path | None, typer.Option(help="Published test file.")] = None,
) -> RawSource:
    """One-hot libFM text (Frappe, MovieLens-tag): FILES to split, or the three published files."""
    given = {"train": train_file, "valid": valid_file, "test": test_file}
    named = {name: path for name, path in given.items() if path is not None}
    if bool(files) == bool(named) or len(named) not in (0, 3):
        raise ConfigError("give either FILES, or all of --train-file, --valid-file and --test-file")
    return LibFMSource(files or [], named)


def _guess(file: Path | None) -> None:
    if file is not None:
        typer.echo(guess_schema(file), nl=False)
        raise typer.Exit


Paths: TypeAlias = list[Path] | None


@prepare_app.command("table")
@_command
def _table(
    schema: Annotated[Path, typer.Option(help="YAML: label, dense, categorical, …")],
    files: Annotated[
        Paths, typer.Argument(help="Files, folders or patterns, pooled in this order.")
    ] = None,
    train_file: Annotated[
        Paths, typer.Option(help="Training rows, split already. Repeatable.")
    ] = None,
    valid_file: Annotated[
        Paths, typer.Option(help="Validation rows, split already. Repeatable.")
    ] = None,
    test_file: Annotated[Paths, typer.Option(help="Test rows, split already. Repeatable.")] = None,
    skip_bad_rows: Annotated[
        int,
        typer.Option(help="Leave out up to so many rows that cannot be read.", min=0),
    ] = 0,
    guess: Annotated[
        Path | None,
        typer.Option(
            help="Print a first schema for a file, to be corrected, and do nothing else.",
            callback=_guess,
            is_eager=True,
        ),
    ] = None,
) -> RawSource:
    """Any CSV, Parquet or JSON-lines files, described by a YAML schema.

    FILES, or those of each split, may be folders (of Hive partitions, too) and patterns.
    The schema names columns: label (with positive or threshold), dense (list, or name: scale),
    categorical (list), multi_valued (name: separator), shares (name: the field whose table it has),
    time (with time_format), split ({column: name}, of rows that are split already), weight (what
    rows count for), group (within whose rows models are scored), keep (columns that no model sees,
    to score by), and says how a CSV file is written: separator, quote, null_values. A first one:
    mlet prepare table --guess FILE > schema.yaml
    """
    given: dict[SplitName, list[Path] | None] = {
        "train": train_file, "valid": valid_file, "test": test_file
    }  # fmt: skip
    named = {name: paths for name, paths in given.items() if paths}
    if bool(files) == bool(named) or len(named) not in (0, 3):
        raise ConfigError("give either FILES, or all of --train-file, --valid-file and --test-file")
    return TableSource(
        files or [], TableSchema.load(schema), given=named, skip_bad_rows=skip_bad_rows
    )
