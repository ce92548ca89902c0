"""The figure of ``choosing_k.py``: measured gain and predicted share against k."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.figure import Figure

from mlet.reporting.plots import MLET_COLOURS, SLT_COLOUR, figure_style, plain_axes, svg_text


def draw(rows: list[dict[str, Any]], slt: dict[str, Any], title: str) -> str:
    """Gain in test AUC against k, on all and on rare rows, with the predicted share beside it."""
    ks = [row["k"] for row in rows]
    with figure_style():
        figure = Figure(figsize=(10, 3.8), layout="constrained")
        gains, shares = figure.subplots(1, 2)
        for which, colour, label in (
            ("test", MLET_COLOURS[0], "all test rows"),
            ("rare", MLET_COLOURS[1], "rows with a rare category"),
        ):
            gains.errorbar(
                ks,
                [math.nan if row[which]["mean"] is None else row[which]["mean"] for row in rows],
                yerr=[row[which]["margin"] or 0 for row in rows],
                color=colour,
                marker="o",
                capsize=4,
                linewidth=2,
                label=label,
            )
        gains.axhline(0, color=SLT_COLOUR, linestyle="--", label=f"SLT, d = {slt['dim']}")
        gains.set_title(f"gain in AUC over SLT: {title}", fontsize=11)
        gains.legend(frameon=False, fontsize=9)
        kept = [100 * row["kept"] for row in rows]
        shares.plot(ks, kept, "s-", color=MLET_COLOURS[2], linewidth=2)
        shares.set_title("predicted: update energy kept, %", fontsize=11)
        for axes in (gains, shares):
            axes.set_xscale("log", base=2)
            axes.set_xticks(ks, [str(k) for k in ks])
            axes.set_xlabel("inner dimension k")
            plain_axes(axes)
        return svg_text(figure)
