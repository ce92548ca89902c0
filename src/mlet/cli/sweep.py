"""``mlet sweep``: a whole study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mlet.cli.console import complain, counting, say, show_table
from mlet.cli.settings import Assignments
from mlet.errors import ConfigError
from mlet.settings import load_yaml, merge, parse_assignments
from mlet.studies import StudyConfig, StudyResult, write_report
from mlet.studies import sweep as run_study
from mlet.studies.arm_table import reduction_columns, reduction_rows
from mlet.studies.verdict import counts, data_sentences


def sweep(
    study: Annotated[Path, typer.Argument(help="YAML file: data sets, models, dims, …")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Directory for everything. Default: the study's name."),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="URL of the database of trials, as postgresql://host/name, for several machines "
            "that share OUT. Default: a SQLite file in OUT."
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Runs at once; default: one for each core.", min=1)
    ] = None,
    devices: Annotated[str, typer.Option(help="Of the runs, in turn, as cuda:0,cuda:1.")] = "cpu",
    datasets: Annotated[
        str | None, typer.Option(help="Only these of the study's, with commas; others any time.")
    ] = None,
    set_: Assignments = None,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Also redo what a machine that died was training.")
    ] = False,
) -> None:
    """Quality against dimension: data sets × models × optimizers × SLT, MLET and peers.

    Every arm is tuned by Optuna with the same number of trials on the validation split, then
    trained with every seed and scored on the test split. Called again after an interruption, it
    continues. OUT gets report.html, tables.md and study.json.

    `mlet sweep studies/quick.yaml` is a first example; `--set datasets.avazu.files=[train.csv]`
    points a study to your files.
    """
    values = merge(load_yaml(study), parse_assignments(set_ or []))
    if datasets is not None:
        values["datasets"] = _chosen(values.get("datasets"), datasets.split(","), study)
    config = StudyConfig.parse(values, str(study))
    folder = out or Path(study.stem)
    try:
        with counting() as report:
            result = run_study(
                config,
                folder,
                storage=storage,
                jobs=jobs,
                devices=devices.split(","),
                take_over=take_over,
                report=report,
            )
    except KeyboardInterrupt:
        complain("stopped; the same command continues where it was")
        raise typer.Exit(130) from None
    page = write_report(result, folder)
    _print(result)
    say(f"report: {page}")


def _chosen(datasets: Any, names: list[str], study: Path) -> dict[str, Any]:
    """Some of a study's data sets, so that the others need not be there."""
    known = datasets if isinstance(datasets, dict) else {}
    for name in names:
        if name not in known:
            raise ConfigError(f"--datasets: {study} has no {name!r}; it has {', '.join(known)}")
    return {name: known[name] for name in names}


def _print(result: StudyResult) -> None:
    rows = reduction_rows(result)
    if rows:
        columns = reduction_columns(result.study.task)
        title = "Against SLT of the same dimension"
        show_table(title, columns, rows, left=4, bold=lambda row: row[2] == "all")
        found = counts(result)
        say(
            f"MLET arms: {found['better']} better, {found['worse']} worse than SLT, "
            f"{found['unclear']} cannot be told apart."
        )
    for sentence in data_sentences(result):
        say(sentence)
    for failure in result.failures:
        say(f"no result: {failure.arm.name}: {'; '.join(failure.reasons)}")
