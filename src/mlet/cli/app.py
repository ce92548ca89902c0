"""``mlet`` and its commands."""

from __future__ import annotations

from typing import Annotated, ClassVar

import typer

from mlet import __version__
from mlet.cli.later import Later, LaterGroup


class _Commands(LaterGroup):
    later: ClassVar[dict[str, Later]] = {
        "prepare": Later(
            "mlet.cli.prepare:prepare_app", "Turn raw click data into a prepared data set."
        ),
        "synthesize": Later(
            "mlet.cli.synthesize:synthesize",
            "Generate a prepared data set whose true click probabilities are known.",
        ),
        "describe": Later(
            "mlet.cli.describe:describe",
            "How sparse is this data, and which of its tables are worth two layers?",
        ),
        "train": Later("mlet.cli.train:train", "Train a click model on a prepared data set."),
        "evaluate": Later(
            "mlet.cli.evaluate:evaluate",
            "AUC, logloss and calibration, overall and by category frequency, with 95 % intervals.",
        ),
        "collapse": Later(
            "mlet.cli.train:collapse", "Write a model with ordinary tables (W := W2 W1)."
        ),
        "export": Later(
            "mlet.cli.export:export",
            "Write a model for other programs: dense features and ids in, probability out.",
        ),
        "predict": Later(
            "mlet.cli.predict:predict",
            "Score raw rows, as they come: categories by name, dense features unscaled, no label "
            "needed.",
        ),
        "compare": Later("mlet.cli.compare:compare", "What would MLET give me on my data?"),
        "progressive": Later(
            "mlet.cli.progressive:progressive", "Would MLET have served better, day by day?"
        ),
        "sweep": Later(
            "mlet.cli.sweep:sweep",
            "Quality against dimension: data sets × models × optimizers × SLT, MLET and peers.",
        ),
        "shrink": Later(
            "mlet.cli.shrink:shrink",
            "The smallest served model that is about as good as a wide one.",
        ),
        "inspect": Later("mlet.cli.inspect:inspect", "See what two layers do to a run's tables."),
        "suggest-k": Later(
            "mlet.cli.inspect:suggest_k", "Choose an inner dimension for every table."
        ),
    }


app = typer.Typer(
    name="mlet",
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mlet {__version__}")
        raise typer.Exit


@app.callback()
def _mlet(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Multi-layer embedding training: better or smaller embedding tables, free when serving.

    Click data becomes a prepared data set (**prepare**, or **synthesize** for data of
    known truth; **describe** says how sparse it is); a model is trained on it (**train**),
    scored (**evaluate**), written with ordinary tables (**collapse**) and handed on to servers
    (**export**); with it raw rows are scored (**predict**). **compare** does it all, with and
    without MLET.
    **progressive** compares on data with time, block after block of what comes next.
    **sweep** makes whole studies: models, optimizers, dimensions, tuned alike.
    **shrink** searches for the smallest model that is about as good as a wide one.
    **inspect** shows what two layers did to a run's tables, **suggest-k** how wide to make them.
    """
