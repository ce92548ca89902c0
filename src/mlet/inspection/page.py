"""The page of an inspection: self-contained HTML."""

from __future__ import annotations

from pathlib import Path

from mlet.atomic import write_text
from mlet.data.layout import file_name
from mlet.inspection.figures import flow_map, gains_plot, reweighting_map, spectra_over_time
from mlet.inspection.inspect import Inspection, TableInspection
from mlet.reporting.page import render
from mlet.reporting.plots import on_page

#: Tables shown with figures: the largest.
_SHOWN = 6
#: What a figure shows, for who does not see it.
_ALT = {
    "reweighting": "by how much each pair of directions of an update is scaled, as a heat map",
    "flow": "which share of a category's movement comes from categories of which frequency",
    "spectra": "singular values of the table and its factors over training steps",
    "gains": "test loss of the baseline less that of this run, against training count",
}


def write_page(inspection: Inspection, path: Path, figures: Path | None = None) -> None:
    """Write the page, whole or not at all. The largest six tables get figures, all are listed.

    Args:
        inspection: what to show.
        path: of the page.
        figures: put each figure here too, as ``TABLE-reweighting.svg``, ``-flow``, ``-spectra``,
            ``-gains``; unusual characters of the table's name are percent-encoded.
    """
    shown = sorted(inspection.tables, key=lambda table: -table.n)[:_SHOWN]
    sections = {table.name: _section(inspection, table) for table in shown}
    if figures is not None:
        for name, section in sections.items():
            for kind, svg in section.items():
                if kind in _ALT and svg is not None:
                    write_text(figures / f"{file_name(name)}-{kind}.svg", f"{svg}\n")
    write_text(
        path,
        render(
            "inspection.html.j2",
            inspection=inspection,
            rows=[summary_row(table) for table in inspection.tables],
            columns=SUMMARY_COLUMNS,
            sections=[_on_page(name, section) for name, section in sections.items()],
            left_out=len(inspection.tables) - len(shown),
        ),
    )


SUMMARY_COLUMNS = (
    "table", "n", "d", "k", "in use", "spread", "eff. rank W2", "eff. rank W", "imbalance",
    "rare: from others",
)  # fmt: skip


def summary_row(table: TableInspection) -> tuple[str, ...]:
    """The cells of `SUMMARY_COLUMNS`."""
    spectra = table.spectra
    assert spectra.inner is not None
    assert spectra.imbalance is not None
    shared = "" if table.flow is None else f"{100 * float(_rare_share(table)):.0f} %"
    return (
        table.name,
        f"{table.n:,}",
        str(table.d),
        str(table.k),
        str(table.energy.in_use),
        f"{table.reweighting.spread:.3g}",
        f"{spectra.inner.effective_rank:.1f}",
        f"{spectra.product.effective_rank:.1f}",
        f"{spectra.imbalance:.3g}",
        shared,
    )


def _rare_share(table: TableInspection) -> float:
    """What the rarest categories that do occur in training owe to others."""
    assert table.flow is not None
    names = table.flow.names
    place = 1 if names[0] == "0" and len(names) > 1 else 0
    return float(table.flow.shared[place])


def _on_page(name: str, section: dict[str, object]) -> dict[str, object]:
    return {
        kind: on_page(str(value), f"{name}: {_ALT[kind]}")
        if kind in _ALT and value is not None
        else value
        for kind, value in section.items()
    }


def _section(inspection: Inspection, table: TableInspection) -> dict[str, object]:
    name = table.name
    recorded = bool(inspection.history) and name in inspection.history[0]["tables"]
    return {
        "table": table,
        "reweighting": reweighting_map(table),
        "flow": None if table.flow is None else flow_map(table.flow),
        "spectra": spectra_over_time(name, inspection.history, inspection.baseline_history)
        if recorded
        else None,
        "gains": gains_plot(inspection.gains[name], inspection.loss)
        if inspection.loss and name in inspection.gains
        else None,
    }
