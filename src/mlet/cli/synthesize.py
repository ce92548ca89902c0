"""``mlet synthesize``: click data of known truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlet.cli.console import counting, say
from mlet.cli.prepare import print_schema
from mlet.data import SplitRule, prepare
from mlet.data.readers.criteo import write_criteo_tsv
from mlet.data.synthetic import PresetName, SyntheticSource, preset
from mlet.errors import ConfigError
from mlet.settings import parse_assignments


def synthesize(
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory (or file) to create.")],
    preset_name: Annotated[
        PresetName,
        typer.Option(
            "--preset",
            help="user-item: two sparse fields, the demo's; criteo: 26 fields of its "
            "cardinalities, 13 dense.",
        ),
    ] = "default",
    rows: Annotated[int | None, typer.Option(help="Rows in all.", min=100)] = None,
    seed: Annotated[int, typer.Option(help="Of everything.", min=0)] = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other setting, as zipf=1.3 or cardinalities=[1000,50]."),
    ] = None,
    valid: Annotated[float, typer.Option(help="Share of rows for validation.")] = 0.1,
    test: Annotated[float, typer.Option(help="Share of rows for the test split.")] = 0.2,
    criteo_tsv: Annotated[
        bool,
        typer.Option("--criteo-tsv", help="Write raw rows in Criteo's format to the file --out."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Generate a prepared data set whose true click probabilities are known.

    Zipf-distributed categories with clustered latent vectors, pairwise interactions, dense
    features. The best possible AUC and logloss are reported: every model's ceiling.
    """
    changes = {"seed": seed, **parse_assignments(set_ or [])}
    if rows is not None:
        changes["rows"] = rows
    source = SyntheticSource(preset(preset_name, **changes))
    with counting() as report:
        if criteo_tsv:
            if out.exists() and not overwrite:
                raise ConfigError(f"{out} already exists: pass --overwrite or choose another file")
            write_criteo_tsv(source, out, lambda done: report("writing", done, source.config.rows))
            say(f"{source.config.rows:,} rows -> {out}")
            return
        rule = SplitRule(valid=valid, test=test, seed=seed)
        schema = prepare(source, out, split=rule, overwrite=overwrite, report=report)
    print_schema(schema.model_copy(update={"source": f"synthetic, {preset_name}"}), out)
