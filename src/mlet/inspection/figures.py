"""Figures of an inspection, as SVG text."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlet.inspection.gains import CategoryGains
from mlet.inspection.inspect import TableInspection
from mlet.reporting.plots import (
    MLET_COLOURS,
    SLT_COLOUR,
    figure_style,
    plain_axes,
    svg_text,
)
from mlet.task import Metric
from mlet.theory import FlowByFrequency


def reweighting_map(table: TableInspection) -> str:
    """``s2ᵢ² + s1ⱼ²`` over the spanned directions, and ``s1ⱼ²`` outside: a heat map."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    inside = table.reweighting.factors.numpy()
    outside = table.reweighting.outside.numpy()[None, :]
    # Below the table's own directions, a band for all others.
    shown = np.concatenate([inside, np.repeat(outside, max(2, len(inside) // 12), axis=0)])
    tiny = max(shown.max() * 1e-6, 1e-30)
    with figure_style():
        figure = Figure(figsize=(5.2, 4.4), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(
            shown.clip(tiny), aspect="auto", cmap="viridis", norm=LogNorm(), interpolation="nearest"
        )
        axes.axhline(len(inside) - 0.5, color="white", linewidth=2)
        axes.set_xlabel("right direction j (of W1)")
        axes.set_ylabel("left direction i (of W2)")
        ticks = sorted({0, table.d - 1} | set(range(0, table.d, max(1, table.d // 4))))
        axes.set_xticks(ticks, [str(tick + 1) for tick in ticks])
        rows = [0, len(inside) - 1, (len(inside) + len(shown) - 1) / 2]
        others = table.reweighting.left_directions - table.reweighting.boosted
        axes.set_yticks(rows, ["1", str(len(inside)), f"other {others:,}"])
        figure.colorbar(image, ax=axes, label="factor of the update (ordinary: 1)")
        return svg_text(figure)


def spectra_over_time(
    name: str, history: list[dict[str, Any]], baseline: list[dict[str, Any]]
) -> str:
    """Effective rank of the factors and the product, and imbalance, against the step."""
    from matplotlib.figure import Figure

    steps = [record["step"] for record in history]
    with figure_style():
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        ranks, values, norms = figure.subplots(1, 3)
        for part, colour, label in (
            ("inner", MLET_COLOURS[0], "W2"),
            ("projection", MLET_COLOURS[1], "W1"),
            ("product", MLET_COLOURS[2], "W = W2 W1"),
        ):
            curve = [record["tables"][name][part]["effective_rank"] for record in history]
            ranks.plot(steps, curve, color=colour, linewidth=2, label=label)
        top = np.array([record["tables"][name]["product"]["values"] for record in history])
        for place in range(min(top.shape[1], 8)):
            values.plot(
                steps,
                top[:, place],
                color=MLET_COLOURS[2],
                alpha=1 - 0.1 * place,
                linewidth=1.6,
                label="W = W2 W1" if place == 0 else None,
            )
        if baseline:
            their_steps = [record["step"] for record in baseline]
            curve = [record["tables"][name]["product"]["effective_rank"] for record in baseline]
            ranks.plot(
                their_steps, curve, color=SLT_COLOUR, linewidth=2, linestyle="--", label="SLT"
            )
            theirs = np.array([r["tables"][name]["product"]["values"] for r in baseline])
            for place in range(min(theirs.shape[1], 8)):
                values.plot(
                    their_steps,
                    theirs[:, place],
                    color=SLT_COLOUR,
                    alpha=1 - 0.1 * place,
                    linestyle="--",
                    linewidth=1.4,
                    label="SLT" if place == 0 else None,
                )
        last = history[-1]["tables"][name]["norms"]
        places = np.arange(len(last))
        norms.bar(places - 0.2, list(last.values()), 0.4, color=MLET_COLOURS[2], label="W = W2 W1")
        if baseline:
            theirs_last = baseline[-1]["tables"][name]["norms"]
            norms.bar(
                places + 0.2,
                [theirs_last.get(group, 0.0) for group in last],
                0.4,
                color=SLT_COLOUR,
                label="SLT",
            )
        norms.set_xticks(places, list(last), rotation=30, ha="right")
        norms.set_title("mean norm by training count", fontsize=11)
        ranks.set_title("effective rank", fontsize=11)
        values.set_title("singular values of the table", fontsize=11)
        for axes in (ranks, values):
            axes.set_xlabel("step")
            axes.set_ylim(bottom=0)
        for axes in (ranks, values, norms):
            plain_axes(axes)
            axes.legend(frameon=False, fontsize=9)
        return svg_text(figure)


def flow_map(flow: FlowByFrequency) -> str:
    """For each group of receivers, from where its movement comes: stacked bars."""
    from matplotlib.figure import Figure

    whole = flow.own + flow.received.sum(dim=1)
    safe = whole.clamp(min=1e-300)
    with figure_style():
        figure = Figure(figsize=(5.2, 4.4), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(flow.names))
        bottom = np.zeros(len(places))
        own = (flow.own / safe).numpy()
        axes.bar(places, own, color=SLT_COLOUR, label="its own rows")
        bottom += own
        for b, name in enumerate(flow.names):
            if not flow.received[:, b].any():
                continue  # who is never seen sends nothing
            share = (flow.received[:, b] / safe).numpy()
            axes.bar(
                places,
                share,
                bottom=bottom,
                color=MLET_COLOURS[b % len(MLET_COLOURS)],
                label=f"from categories seen {name} times",
            )
            bottom += share
        labels = [f"{n}\n({c:,})" for n, c in zip(flow.names, flow.categories, strict=True)]
        axes.set_xticks(places, labels)
        axes.set_xlabel("training count of the receiver (categories)")
        axes.set_ylabel("share of its movement")
        axes.set_ylim(0, 1)
        figure.legend(frameon=False, fontsize=9, loc="outside lower center")
        plain_axes(axes)
        return svg_text(figure)


def gains_plot(gains: CategoryGains, loss: Metric) -> str:
    """Gain in ``loss`` of each category against its training count, and the groups' means."""
    from matplotlib.figure import Figure

    with figure_style():
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        scatter, groups = figure.subplots(1, 2)
        scatter.scatter(
            gains.counts + 1,
            gains.gains,
            s=np.clip(2 * np.sqrt(gains.rows), 3, 40),
            color=MLET_COLOURS[0],
            alpha=0.25,
            linewidths=0,
            rasterized=len(gains.counts) > 2_000,
        )
        scatter.set_xscale("log")
        limit = max(float(np.quantile(np.abs(gains.gains), 0.98)), 1e-6)
        scatter.set_ylim(-1.2 * limit, 1.2 * limit)
        scatter.set_xlabel("training count + 1")
        scatter.set_ylabel(loss.gain_label)
        scatter.set_title("each category", fontsize=11)
        places = np.arange(len(gains.groups))
        groups.errorbar(
            places,
            gains.group_gains,
            yerr=np.nan_to_num(gains.group_margins),
            fmt="o",
            color=MLET_COLOURS[0],
            capsize=4,
        )
        labels = [f"{n}\n({r:,})" for n, r in zip(gains.groups, gains.group_rows, strict=True)]
        groups.set_xticks(places, labels)
        groups.set_xlabel("training count (test rows)")
        groups.set_title("means with 95 % intervals", fontsize=11)
        for axes in (scatter, groups):
            axes.axhline(0, color="#111827", linewidth=0.8)
            plain_axes(axes)
        return svg_text(figure)
