"""Figures on pages."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from mlet.reporting.page import render
from mlet.reporting.plots import figure_style, on_page, plain_axes, svg_text
from mlet.studies.figures import _limits
from mlet.studies.statistics import Estimate


@pytest.fixture(scope="module")
def svg() -> str:
    from matplotlib.figure import Figure

    with figure_style():
        figure = Figure(figsize=(2, 1))
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], marker="o")
        plain_axes(axes)
        return svg_text(figure)


def test_two_figures_on_a_page_share_no_names(svg: str) -> None:
    names = [set(re.findall(r'id="([^"]+)"', on_page(svg, "a line"))) for _ in range(2)]
    assert names[0]
    assert not names[0] & names[1]
    for given in names:
        page = on_page(svg, "a line")
        assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(re.findall(r'id="([^"]+)"', page))
        assert given


def test_a_figure_says_what_it_shows_and_leaves_the_paper_to_the_page(svg: str) -> None:
    page = on_page(svg, 'AUC of "a" & <b>')
    root = ElementTree.fromstring(page)
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'AUC of "a" & <b>'
    whites = [len(re.findall("fill: #ffffff", text)) for text in (svg, page)]
    assert whites[0] == whites[1] + 1, "but for the background all is as it was"


def test_every_colour_of_a_page_has_one_for_the_dark() -> None:
    page = render("page.html.j2")
    light, dark = (
        set(re.findall(r"(--\w+):", part))
        for part in re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    )
    assert light == dark
    assert set(re.findall(r"var\((--\w+)\)", page)) <= light
    assert "prefers-color-scheme: dark" in page


def test_bands_of_many_times_the_spread_do_not_stretch_an_axis() -> None:
    points = [Estimate(0.70, 0.01), Estimate(0.72, 2.5), Estimate(math.nan, None)]
    low, high = _limits(points)
    assert 0.66 < low < 0.69
    assert 0.73 < high < 0.78
    assert _limits([Estimate(0.7, 0.02)]) == pytest.approx((0.6776, 0.7224))
    assert _limits([Estimate(0.7, None)]) == pytest.approx((0.69, 0.71))
    assert _limits([Estimate(math.nan, None)]) == (0.0, 1.0)
