"""What the commands print with: progress bars on stderr, results on stdout."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from mlet.task import Task  # imports torch

#: Results; tables keep their width when piped into a file.
output = Console(width=None if Console().is_terminal else 160)
#: Progress and errors.
errors = Console(stderr=True)


def say(text: str) -> None:
    """One line of result, as it is: names and paths may contain what Rich takes for markup."""
    output.print(text, markup=False, highlight=False, soft_wrap=True)


def complain(text: str) -> None:
    """One line for stderr, as it is."""
    errors.print(text, markup=False, highlight=False, soft_wrap=True)


def show_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    left: int = 1,
    bold: Callable[[Sequence[str]], bool] = lambda row: False,
    by: int | None = None,
) -> None:
    """A table of results. Names of fields, files and arms are shown as they are.

    Args:
        title, columns, rows: what is shown.
        left: columns aligned to the left; the others are numbers.
        bold: the rows to stand out.
        by: the column at whose changes a section begins.
    """
    table = Table(title=Text(title, style="italic"), title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if place < left else "right")
    before: Sequence[str] | None = None
    for row in rows:
        if before is not None and by is not None and row[by] != before[by]:
            table.add_section()
        before = row
        table.add_row(*map(Text, row), style="bold" if bold(row) else None)
    output.print(table)


@contextmanager
def counting() -> Iterator[Any]:
    """A bar that follows ``report(what, done, total)`` calls."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=errors,
    ) as progress:
        tasks: dict[str, TaskID] = {}
        reached: dict[str, int] = {}

        def report(what: str, done: int, total: int | None) -> None:
            for task in progress.tasks:
                # One whose end was not known came to it when another began.
                if task.description != what and task.total is None:
                    progress.update(task.id, total=task.completed)
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            if done < reached.get(what, 0):
                # Another of its kind, as the next data set of a study; of a length of its own.
                progress.remove_task(tasks[what])
                tasks[what] = progress.add_task(what, total=total)
            reached[what] = done
            progress.update(tasks[what], completed=done, total=total)

        yield report


class TrainingBar:
    """Shows a run: steps, loss, rows per second, time left, and a line for each validation."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:,.0f} rows/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=errors,
        )
        self._loss: float | None = None

    def __enter__(self) -> TrainingBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, task: Task, steps: int, done: int) -> None:
        """See `mlet.training.observer.Observer`."""
        self._measures = task.measures
        self._task = self._progress.add_task("", total=steps, completed=done, loss=0.0, speed=0.0)

    def step(self, loss: float, rows: int) -> None:
        """See `mlet.training.observer.Observer`; the loss shown is a running mean."""
        self._loss = loss if self._loss is None else 0.98 * self._loss + 0.02 * loss
        speed = (self._progress.tasks[self._task].speed or 0.0) * rows
        self._progress.update(self._task, advance=1, loss=self._loss, speed=speed)

    def validation(self, record: dict[str, float]) -> None:
        """See `mlet.training.observer.Observer`."""
        self._progress.console.print(
            f"epoch {record['epoch']:.2f}  step {record['step']:,.0f}  "
            f"train loss {record['train_loss']:.4f}  valid "
            + "  ".join(f"{m.label} {record[f'valid_{m.name}']:.4f}" for m in self._measures),
            highlight=False,
        )


def print_json(values: Any) -> None:
    """Plain JSON on stdout, for other programs."""
    print(json.dumps(values, indent=2, allow_nan=False))
