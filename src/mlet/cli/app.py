"""``mlet`` and its commands."""

from __future__ import annotations

from typing import Annotated

import typer

from mlet import __version__
from mlet.cli.compare import compare
from mlet.cli.describe import describe
from mlet.cli.inspect import inspect, suggest_k
from mlet.cli.predict import predict
from mlet.cli.prepare import prepare_app
from mlet.cli.progressive import progressive
from mlet.cli.sweep import sweep
from mlet.cli.synthesize import synthesize
from mlet.cli.train import collapse, evaluate, train

app = typer.Typer(
    name="mlet",
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
    scored (**evaluate**) and written with ordinary tables (**collapse**); with it raw rows are
    scored (**predict**). **compare** does it all, with and without MLET.
    **progressive** compares on data with time, block after block of what comes next.
    **sweep** makes whole studies: models, optimizers, dimensions, tuned alike.
    **inspect** shows what two layers did to a run's tables, **suggest-k** how wide to make them.
    """


app.add_typer(prepare_app, name="prepare")
app.command()(synthesize)
app.command()(describe)
app.command()(train)
app.command()(evaluate)
app.command()(collapse)
app.command()(predict)
app.command()(compare)
app.command()(progressive)
app.command()(sweep)
app.command()(inspect)
app.command(name="suggest-k")(suggest_k)
