"""Owns what all commands share: their list, exit codes, and how errors, warnings and Ctrl-C are told."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from redi.cli.build import build, status
from redi.cli.calibrate import calibrate
from redi.cli.demo import demo
from redi.cli.experiments import experiments_app
from redi.cli.generate import generate
from redi.cli.index import index
from redi.cli.inspect import inspect
from redi.cli.miniature import miniature_app
from redi.cli.share import pull, push
from redi.cli.stylize import stylize
from redi.cli.upkeep import compact, merge, remove, split
from redi.errors import RediError, RediWarning

_TO_GO_ON = {
    "build": "the entries so far are kept; the same command goes on with them",
    "demo": "the entries so far are kept; the same command goes on with them",
    "experiments": "the runs so far are kept; the same command goes on with them",
    "miniature": "the last checkpoint is kept; the same command goes on from it",
}


class _Commands(TyperGroup):
    """Commands that end in the promised exit codes, without tracebacks of what redi raises on purpose."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find ``build status`` beside ``build``, which takes no argument of its own."""
        both = " ".join(args[:2])
        return super().resolve_command(ctx, [both, *args[2:]] if both in self.commands else args)

    def invoke(self, ctx: Any) -> Any:
        try:
            with _warnings_in_one_line():
                return super().invoke(ctx)
        except RediError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            hint = _TO_GO_ON.get(str(ctx.invoked_subcommand), "start the same command again")
            typer.echo(f"\ninterrupted: {hint}", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    help=(
        "Text-to-image diffusion with a fraction of the network evaluations: build a knowledge base of trajectories "
        "once, then jump along them.\n\n"
        "\b\nExample:\n"
        "  redi build --prompts captions.txt --out my-base\n"
        '  redi generate "a red cat on the grass" --kb my-base --compare'
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _tell_version(asked: bool) -> None:
    if asked:
        import redi

        typer.echo(f"redi {redi.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


for _command in (build, index, inspect, calibrate, generate, stylize, push, pull, compact, merge, remove, split, demo):
    app.command()(_command)
app.command("build status")(status)
app.add_typer(miniature_app, name="miniature")
app.add_typer(experiments_app, name="experiments")


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Print redi's warnings without the line of source that raised them; others as Python does."""
    before = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, RediWarning):
            typer.echo(f"warning: {message}", err=True)
        else:
            before(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
