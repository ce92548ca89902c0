"""What is said before training: the published line, of the published property."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from mlet.data import PreparedDataset
from mlet.data.properties import properties
from mlet.studies.expectation import expectation, expected_gain, thin_rows

ROOT = Path(__file__).parents[2]


def test_the_line_is_that_of_the_published_points() -> None:
    """Fitted again to the table of docs/theory.md, and its error on sets left out."""
    np = pytest.importorskip("numpy")
    section = (
        (ROOT / "docs" / "theory.md").read_text().split("## When it helps")[1].split("\n## ")[0]
    )
    points = re.findall(r"^\| ([\w-]+) \| \w+ \| \w+ \| ([+-][\d.]+) \| ([\d.]+) \|", section, re.M)
    assert len(points) == 27
    names = [name for name, _, _ in points]
    gains, shares = (np.array([float(p[i]) for p in points]) for i in (1, 2))
    slope, start = np.polyfit(shares, gains, 1)
    errors = []
    for name in set(names):
        out = np.array([each == name for each in names])
        line = np.polyfit(shares[~out], gains[~out], 1)
        errors += list(np.polyval(line, shares[out]) - gains[out])
    error = float(np.sqrt(np.mean(np.square(errors))))
    found = properties_of(0.5, 0.2)
    assert expected_gain(found) == pytest.approx((start + slope * 0.3, error), abs=2e-4)


def properties_of(rare: float, unseen: float) -> object:
    from mlet.data.properties import DatasetProperties

    return DatasetProperties(1_000, 10.0, rare, unseen, ())


@pytest.mark.parametrize(
    ("rare", "unseen", "words"),
    [
        (0.05, 0.0, "Expect something"),
        (0.35, 0.1, "Expect nothing sure"),
        (0.9, 0.1, "Expect nothing:"),
    ],
)
def test_the_sentence_says_how_sure_it_is(rare: float, unseen: float, words: str) -> None:
    text = expectation(properties_of(rare, unseen))  # type: ignore[arg-type]
    assert text.startswith(words)
    assert f"{100 * (rare - unseen):.0f} %" in text
    assert "±0.005" in text


def test_of_a_data_set_it_is_the_share_of_rows_that_are_rare_but_not_new(small_data: Path) -> None:
    data = PreparedDataset(small_data)
    found = properties(data)
    rarest = data.rarest_counts("test")
    assert thin_rows(found) == pytest.approx(float(((rarest > 0) & (rarest < 10)).mean()))
    assert thin_rows(replace(found, unseen_rows=found.rare_rows)) == 0.0
