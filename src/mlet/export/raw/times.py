"""Fields that a format's reader takes off a time: the same in a graph."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from mlet.export.raw.nodes import Nodes

_DAY, _HOUR = 86_400, 3_600
_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
#: Days of a year before each month.
_BEFORE = np.cumsum([0, *_DAYS[:-1]])


class TimeParts(NamedTuple):
    """Values (B, 1), int64, and where a time is none (B, 1), bool."""

    hour: str
    weekday: str
    bad: str | None


class TimeColumn(NamedTuple):
    """A raw column that two fields are read off.

    Attributes:
        name: of the input.
        fields: what is read off it: the hour of the day, and the day of the week from 1, Monday.
        form: how it is written.
        parts: both in a graph, given (B, 1).
        moment: the same of one value, as it is written.
        written: a moment as a value.
    """

    name: str
    form: str
    parts: Callable[[Nodes, str], TimeParts]
    moment: Callable[[int], dt.datetime]
    written: Callable[[dt.datetime], int]
    fields: tuple[str, str] = ("hour", "weekday")

    def read(self, value: int) -> Mapping[str, str]:
        """The categories of one value."""
        moment = self.moment(value)
        return {"hour": str(moment.hour), "weekday": str(moment.isoweekday())}


def _of_seconds(nodes: Nodes, seconds: str) -> TimeParts:
    def mod(value: str, by: int) -> str:
        return nodes.add("Mod", value, nodes.constant([by]))  # of the sign of what divides

    within = mod(seconds, _DAY)
    hour = nodes.add("Div", within, nodes.constant([_HOUR]))
    days = nodes.add("Div", nodes.add("Sub", seconds, within), nodes.constant([_DAY]))
    # 1970 began on a Thursday.
    weekday = mod(nodes.add("Add", days, nodes.constant([3])), 7)
    return TimeParts(hour, nodes.add("Add", weekday, nodes.constant([1])), None)


def _of_digits(nodes: Nodes, written: str) -> TimeParts:
    """Of YYMMDDHH, in this century."""

    def number(value: int) -> str:
        return nodes.constant([value])

    def digits(place: int) -> str:
        return nodes.add("Mod", nodes.add("Div", written, number(10**place)), number(100))

    hour, day, month = digits(0), digits(2), digits(4)
    year = nodes.add("Div", written, number(10**6))
    known = nodes.add(
        "Sub", nodes.add("Clip", month, nodes.constant(1), nodes.constant(12)), number(1)
    )
    quarter = nodes.add("Equal", nodes.add("Mod", year, number(4)), number(0))

    def leap(in_month: str) -> str:
        return nodes.cast(nodes.add("And", quarter, in_month), "INT64")

    length = nodes.add(
        "Add",
        nodes.add("Gather", nodes.constant(_DAYS), known),
        leap(nodes.add("Equal", month, number(2))),
    )
    good = nodes.add("LessOrEqual", day, length)
    for value, least, most in ((year, 0, 99), (month, 1, 12), (day, 1, 31), (hour, 0, 23)):
        good = nodes.add("And", good, nodes.add("GreaterOrEqual", value, number(least)))
        good = nodes.add("And", good, nodes.add("LessOrEqual", value, number(most)))
    days = nodes.add("Mul", year, number(365))
    for more in (
        nodes.add("Div", nodes.add("Add", year, number(3)), number(4)),
        nodes.add("Gather", nodes.constant(_BEFORE), known),
        leap(nodes.add("Greater", month, number(2))),
        nodes.add("Add", day, number(4)),  # the year 2000 began on a Saturday
    ):
        days = nodes.add("Add", days, more)
    weekday = nodes.add("Add", nodes.add("Mod", days, number(7)), number(1))
    return TimeParts(hour, weekday, nodes.add("Not", good))


#: By format.
TIMES: Mapping[str, TimeColumn] = {
    "avazu": TimeColumn(
        "hour",
        "an hour as YYMMDDHH",
        _of_digits,
        lambda value: dt.datetime.strptime(f"20{value:08d}", "%Y%m%d%H"),
        lambda moment: int(moment.strftime("%y%m%d%H")),
    ),
    "movielens": TimeColumn(
        "timestamp",
        "seconds since 1970, UTC",
        _of_seconds,
        lambda value: dt.datetime.fromtimestamp(value, dt.timezone.utc),
        lambda moment: int(moment.timestamp()),
    ),
}
