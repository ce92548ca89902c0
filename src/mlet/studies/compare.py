"""What would MLET give me on my data? A study of one data set, one model and one optimizer."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from mlet.atomic import write_text
from mlet.data.prepare import Report
from mlet.errors import RunError
from mlet.reporting.page import render
from mlet.reporting.plots import on_page
from mlet.reporting.text import as_markdown, without_nan
from mlet.studies.arm_table import arm_rows, compare_columns
from mlet.studies.datasets import DatasetConfig
from mlet.studies.figures import quality_curves
from mlet.studies.methods import SLT
from mlet.studies.reductions import mean_quality_reduction, reduction
from mlet.studies.report import estimates, run_dicts
from mlet.studies.results import ROWS, ArmResult, Panel, StudyResult
from mlet.studies.runner import sweep
from mlet.studies.study import ArmsConfig, StudyConfig
from mlet.studies.used_settings import used_settings
from mlet.studies.verdict import data_sentences, failed_settings, finding, panel_verdict

#: The name of the data set in the study; models and optimizers have names of their own.
_DATA = "data"


class CompareConfig(ArmsConfig):
    """A grid of arms and what they share.

    Attributes:
        rare_below: a test row is rare if its rarest category has fewer training rows than this.
    """

    rare_below: PositiveInt = 10

    def study(self) -> StudyConfig:
        """The study that it is.

        Raises:
            ConfigError: a setting cannot be that of a study, as a step size that is listed twice.
        """
        base = self.base
        values = {
            "datasets": {_DATA: DatasetConfig(prepared=base.data)},
            # A name of the form package.module:Class is no name of a folder.
            "models": {base.model.name.replace(":", "."): base.model},
            "optimizers": {base.optimizer.tables.name: base.optimizer},
            "dims": self.dims,
            "inner_dims": self.inner_dims,
            "mlet": self.mlet,
            "seeds": self.seeds,
            "tuning": {"learning_rates": self.tried_rates},
            "training": base.training,
            "rare_below": self.rare_below,
        }
        return StudyConfig.parse(values, "compare")


@dataclass(frozen=True)
class Comparison:
    """The outcome of a comparison.

    Attributes:
        config: what was asked.
        result: of the study that it is.
    """

    config: CompareConfig
    result: StudyResult

    @property
    def panel(self) -> Panel:
        """All arms."""
        return self.result.panels[0]

    @property
    def arms(self) -> tuple[ArmResult, ...]:
        """SLT and MLET for each dimension."""
        return self.panel.arms

    def verdict(self) -> list[str]:
        """Sentences for a reader in a hurry: where MLET helped, and where it did not."""
        found = finding(self.panel)
        first = [] if found is None else [found]
        return [*first, *panel_verdict(self.panel), *data_sentences(self.result)]

    @property
    def columns(self) -> tuple[str, ...]:
        """Of its table."""
        return compare_columns(self.panel.task, grouped=self.panel.schema.group is not None)

    def rows(self) -> list[tuple[str, ...]]:
        """One row of `columns` for each arm."""
        return arm_rows(self.panel, self.columns)

    def markdown(self) -> str:
        """The table of all arms in Markdown."""
        return as_markdown(self.columns, self.rows())

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values; NaN becomes null."""
        schema = self.panel.schema.model_dump(mode="json")
        plain: dict[str, Any] = without_nan(
            {
                "source": schema["source"],
                "splits": schema["splits"],
                "base": self.config.base.model_dump(mode="json"),
                "tried_rates": self.config.tried_rates,
                "diverged": failed_settings(self.panel),
                "rare": {"below": self.panel.rare_below, "rows": self.panel.rare_rows},
                "machine": self.result.machine,
                "jobs": self.result.jobs,
                "seconds": self.result.seconds,
                "verdict": self.verdict(),
                "arms": [self._arm_dict(arm) for arm in self.arms],
            }
        )
        return plain

    def _arm_dict(self, arm: ArmResult) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "method": arm.method.kind,
            "dim": arm.dim,
            "inner_dim": arm.inner_dim,
            "learning_rate": arm.learning_rate,
            "model_bytes": arm.model_bytes,
            "train_seconds": arm.seconds,
            "step_milliseconds": arm.step_milliseconds,
        }
        for rows in ROWS:
            entry[rows] = estimates(self.panel, arm, rows)
            if arm.method != SLT:
                point = mean_quality_reduction(self.panel, arm, rows)
                entry[rows][f"{self.panel.task.headline.name}_gain"] = asdict(
                    self.panel.gain(arm, rows)
                )
                entry[rows]["reduction"] = asdict(point) if point else None
        if arm.method != SLT and (found := reduction(self.panel, arm)):
            interval = found.to_dict()
            entry["test"]["reduction"] |= {name: interval[name] for name in ("low", "high")}
        return {**entry, "runs": run_dicts(self.panel, arm)}

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"


def compare(
    config: CompareConfig,
    out: Path,
    *,
    jobs: int | None = None,
    report: Report = lambda what, done, total: None,
) -> Comparison:
    """Tune and train every arm, then score the kept ones on the test split.

    Called again it continues: finished runs are kept, unfinished ones resume.

    Args:
        config: the grid.
        out: directory for the runs and ``compare.json``.
        jobs: runs trained at once, each in a process of its own; None: one for each core.
        report: told of progress.

    Raises:
        RunError: ``out`` holds a comparison with other settings, or an arm could not be trained.
    """
    if (out / "compare.yaml").exists() and not (out / "study.yaml").exists():
        raise RunError(
            f"{out} holds a comparison of mlet 0.1, which kept its runs in another way; its report "
            f"stays as it is: choose another --out to compare again"
        )
    result = sweep(config.study(), out, jobs=jobs, report=report)
    if result.failures:
        failure = result.failures[0]
        name = f"{failure.arm.method.name}-d{failure.arm.dim}"
        raise RunError(f"no learning rate works for {name}: {'; '.join(failure.reasons)}")
    comparison = Comparison(config, result)
    # Not before: a call with other settings is refused, and leaves what there is.
    write_text(out / "compare.yaml", config.to_yaml())
    write_text(out / "compare.json", comparison.to_json())
    return comparison


def write_comparison(comparison: Comparison, out: Path) -> Path:
    """Write ``report.html`` and its figure ``curves.svg`` into ``out``; returns the page's path."""
    panel = comparison.panel
    svg = quality_curves(panel)
    alt = f"test {panel.task.headline.label} against embedding dimension: all rows, and rare ones"
    page = render(
        "comparison.html.j2",
        comparison=comparison,
        panel=panel,
        settings=used_settings(comparison.result.study),
        columns=comparison.columns,
        task=panel.task,
        rows=comparison.rows(),
        svg=on_page(svg, alt),
        gains=sorted((panel.gain(arm).mean, arm.dim, arm.inner_dim) for arm in panel.mlet),
        outcomes=[panel.outcome(arm) for arm in panel.mlet],
    )
    write_text(out / "curves.svg", svg)
    path = out / "report.html"
    write_text(path, page)
    return path
