"""Who does the work of preparation: this process alone, or workers of an engine.

The work is functions of a few million rows that write what they make of them to files of their
own, or to rows of a file that are theirs; whoever runs them, and in whatever order, they make the
same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Protocol, TypeAlias, TypeVar

from mlet.errors import RunError

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Waits for what was begun, and gives what came of it or raises what it failed with.
Promise: TypeAlias = Callable[[], Result]

#: Tasks of one kind for each worker, so that none is long without one at the end.
_TASKS = 4


class WorkerDied(RunError):
    """A worker died, and so did those that took over."""


class Workers(Protocol):
    """Runs functions.

    Attributes:
        count: how many run at once.
        here: whether all run in this process, one after another, when they are submitted.
    """

    count: int
    here: bool

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Promise[Result]:
        """Begin ``function(*arguments)``; it may be begun again if a worker dies.

        Raises:
            WorkerDied: (by the promise) it did every time.
        """
        ...

    def shared(self, value: Any) -> Any:
        """What to submit in place of a value that many functions are given."""
        ...

    def stop(self) -> None:
        """Give up what was begun; nothing of it runs any more when this returns."""
        ...


class Here:
    """This process."""

    count, here = 1, True

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Promise[Result]:
        """See `Workers`."""
        result = function(*arguments)
        return lambda: result

    def shared(self, value: Any) -> Any:
        """See `Workers`."""
        return value

    def stop(self) -> None:
        """See `Workers`."""


@contextmanager
def stopped_on_failure(workers: Workers) -> Iterator[None]:
    """Stop workers before what they write to is removed."""
    try:
        yield
    except BaseException:
        workers.stop()
        raise


def shares(workers: Workers, chunks: list[Item]) -> list[list[Item]]:
    """The chunks, in order, as the tasks that they are dealt out in: one, in this process."""
    tasks = 1 if workers.here else min(len(chunks), _TASKS * workers.count)
    edges = [len(chunks) * place // tasks for place in range(tasks + 1)]
    return [chunks[start:stop] for start, stop in pairwise(edges)]


def begun_ahead(
    workers: Workers, begin: Callable[[Item], Promise[Result]], items: Iterable[Item]
) -> Iterator[tuple[Item, Result]]:
    """The result of each item, in order; workers begin all of them, this process each in turn."""
    if workers.here:
        for item in items:
            yield item, begin(item)()
        return
    for item, promise in [(item, begin(item)) for item in items]:
        yield item, promise()
