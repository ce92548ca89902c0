"""Text of Criteo's shape of any length, in which categories grow in number as in its own logs.

Of Criteo-Kaggle's 45,840,617 rows 33,762,577 categories are known, most of them in five fields.
`mlet synthesize` draws them independently, by a Zipf law, which meets only a part of them. Here the
r-th row brings a field's next category as often as makes ``n (r / 45,840,617)^0.85`` of them, n
being Criteo's number, and one of those before, early ones most, otherwise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from mlet.data.synthetic import CRITEO_CARDINALITIES

#: Rows of Criteo-Kaggle, and how the number of categories grows with that of rows.
ROWS, GROWTH = 45_840_617, 0.85
#: Shares of the rows in which a dense feature or field is empty, about as in Criteo-Kaggle.
_NO_NUMBER = [0.45, 0, 0.21, 0.22, 0.03, 0.22, 0.04, 0, 0.04, 0.45, 0.04, 0.77, 0.22]
_NO_CATEGORY = [0, 0, 0.03, 0.03, 0, 0.12, 0, 0, 0, 0, 0, 0.03, 0, 0, 0, 0.03, 0, 0,
                0.44, 0.44, 0.03, 0.76, 0, 0.03, 0.44, 0.44]  # fmt: skip
#: How unevenly categories occur: one before is the place ``u ** _SKEW`` of those that are known.
_SKEW = 5
#: Rows to a new category of a field that is small enough to be known early.
_SOON = 50
_BLOCK = 500_000
_DIGITS = pl.Series([f"{number:04x}" for number in range(1 << 16)])


def write_criteo_text(path: Path, rows: int, seed: int = 0) -> None:
    """Write tab-separated rows: label, 13 numbers, 26 categories of eight hexadecimal digits."""
    generator = np.random.default_rng(seed)
    with path.open("wb") as file:
        for start in range(0, rows, _BLOCK):
            block = np.arange(start, min(start + _BLOCK, rows))
            columns = [pl.Series("label", (generator.random(len(block)) < 0.25).astype(np.uint8))]
            for place, empty in enumerate(_NO_NUMBER):
                numbers = pl.Series(
                    f"I{place}", generator.exponential(20, len(block)).astype(np.int64)
                )
                columns.append(numbers.set(_chosen(generator, empty, len(block)), None))
            for place, (most, empty) in enumerate(
                zip(CRITEO_CARDINALITIES, _NO_CATEGORY, strict=True)
            ):
                texts = _categories(generator, block, most, place).alias(f"C{place}")
                columns.append(texts.set(_chosen(generator, empty, len(block)), None))
            frame = pl.DataFrame(columns)
            frame.write_csv(file, include_header=False, separator="\t")


def _chosen(generator: np.random.Generator, share: float, rows: int) -> pl.Series:
    return pl.Series(generator.random(rows) < share)


def _categories(
    generator: np.random.Generator, rows: np.ndarray, most: int, field: int
) -> pl.Series:
    """A field's categories in some rows."""
    known, then = (_known(some, most) for some in (rows, rows + 1))
    drawn = (known * generator.random(len(rows)) ** _SKEW).astype(np.int64)
    numbers = np.where(then > known, known, drawn)
    # A number times an odd one, in 32 bits, is another for each.
    digits = (numbers * 2_654_435_761 + field * 97_531) & 0xFFFF_FFFF
    high, low = _DIGITS.gather(digits >> 16), _DIGITS.gather(digits & 0xFFFF)
    return pl.select(pl.concat_str(high, low)).to_series()


def _known(rows: np.ndarray, most: int) -> np.ndarray:
    """How many categories of a field the first rows hold; those of small fields are soon known."""
    grown = np.floor(most * (rows / ROWS) ** GROWTH).astype(np.int64)
    return np.maximum(grown, np.minimum(most, rows // _SOON + 1))
