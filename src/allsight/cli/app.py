"""The verbs of `allsight`."""

from __future__ import annotations

from typing import Annotated

import typer

from allsight.cli import (
    asking,
    benching,
    checking,
    datasets,
    demonstration,
    exporting,
    looking,
    planning,
    running,
    using,
    watching,
    weight_files,
)

app = typer.Typer(
    name="allsight",
    help="Train and run vision generalists: InternImage, M3I, Uni-Perceiver and BEVFormer in one package.",
    epilog="Start with `allsight demo`, or `allsight config --list`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool | None) -> None:
    if asked:
        from allsight import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _before(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of every error (first word only).")
    ] = False,
    version: Annotated[
        bool | None, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = None,
) -> None:
    pass


app.command("train", short_help="Train a recipe, or go on with a run.")(running.train)
app.command("plan", short_help="Say what a run would take, without running it.")(planning.plan)
app.command("eval", short_help="Score weights on validation samples.")(using.evaluate)
app.command("predict", short_help="Answer for pictures.")(using.predict)
app.command("ask", short_help="Ask a generalist.")(asking.ask)
app.command("export", short_help="Write a model as ONNX or for torch.export.")(exporting.export)
app.command("config", short_help="Print a recipe with all its settings.")(looking.config)
app.command("report", short_help="Write a run's HTML report.")(looking.report)
app.command("watch", short_help="Show how a run goes.")(watching.watch)
app.command("doctor", short_help="Say what this machine can do.")(looking.doctor)
app.command("check-task", short_help="Check a task of your own.")(checking.check_task)
app.add_typer(datasets.app, name="data")
app.add_typer(benching.app, name="bench")
app.add_typer(weight_files.app, name="weights")
app.command("demo", short_help="See it all work, in minutes.")(demonstration.demo)
