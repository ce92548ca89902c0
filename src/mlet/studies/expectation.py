"""What the recipe may be expected to gain on a data set, before anything is trained."""

from __future__ import annotations

from mlet.data.properties import RARE_BELOW, DatasetProperties

#: A straight line over `thin_rows`, and its root mean square error on a data set that was left out:
#: ``benchmarks/when_it_helps.py`` on four real and eleven synthetic data sets (docs/theory.md,
#: "When it helps"). In test AUC, means over d up to 16.
_START, _SLOPE, _ERROR = 0.0098, -0.0245, 0.0054


def thin_rows(found: DatasetProperties) -> float:
    """Share of the test rows whose rarest category training saw, but under ten times."""
    return found.rare_rows - found.unseen_rows


def expected_gain(found: DatasetProperties) -> tuple[float, float]:
    """The mean gain in test AUC over d up to 16, and the rule's error."""
    return _START + _SLOPE * thin_rows(found), _ERROR


def expectation(found: DatasetProperties) -> str:
    """The same as a sentence."""
    gain, error = expected_gain(found)
    much = "something" if gain > error else "nothing sure" if gain > 0 else "nothing"
    return (
        f"Expect {much}: of 15 data sets, those where more of the test rows hold a category that "
        f"training saw, but under {RARE_BELOW} times, gained less "
        f"(here {100 * thin_rows(found):.0f} % do). By that rule two layers gain "
        f"{gain:+.3f} ±{error:.3f} AUC."
    )
