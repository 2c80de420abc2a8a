"""The command `berth`: its options, its commands by subject, and its exit on errors."""

from __future__ import annotations

import io
import json
import sys
from typing import Annotated

import typer

from cli import VERSION
from cli.commands import bench, catalog, chat, help, lifecycle, logs, look, pull, serve
from cli.errors import CliError, ExitCode
from cli.names import Commands
from cli.session import DEFAULT_URL, Json
from cli.tables import printable

_EXIT_CODES = """\b
Exit status:
  0    success
  1    the server refused the request; the message says why and what to do
  2    invalid command line
  3    Berth can't be reached, or another server answers at its address
  4    no such model or instance
  5    the API key is missing, unknown, or not allowed to do this
  130  interrupted by Ctrl-C

\b
Environment: BERTH_URL, BERTH_API_KEY, NO_COLOR."""

# Plain help: Rich would more than double the time that it takes.
app = typer.Typer(
    name="berth",
    cls=Commands,
    help="Run models with Berth: start them, chat with them, manage them.",
    epilog=_EXIT_CODES,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (serve, look, chat, lifecycle, catalog, pull, logs, bench, help):
    module.register(app)


def _print_version(is_requested: bool) -> None:
    if is_requested:
        typer.echo(f"berth {VERSION}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def berth(
    ctx: typer.Context,
    url: Annotated[
        str | None, typer.Option(envvar="BERTH_URL", help=f"Berth's URL; default: {DEFAULT_URL}")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="BERTH_API_KEY", help="One of Berth's API keys")
    ] = None,
    as_json: Json = False,
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version"),
    ] = False,
) -> None:
    """Without a command, prints the help. `cli.session` reads these options."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help(), err=True)
        raise typer.Exit(ExitCode.USAGE)


def main() -> int:
    """Run one command; the exit status is an `ExitCode`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a character that the terminal can't show becomes `?`
    try:
        status = app(prog_name="berth", standalone_mode=False)
    except CliError as exc:
        return _print_error(exc)
    except typer.TyperException as exc:  # invalid arguments
        line = " ".join(exc.format_message().split())
        where = getattr(getattr(exc, "ctx", None), "command_path", "berth")
        return _print_error(CliError(line.rstrip("."), ExitCode.USAGE, next_step=f"see `{where} --help`"))
    except (KeyboardInterrupt, typer.Abort):
        return ExitCode.INTERRUPTED
    except BrokenPipeError:  # the reader has closed its end
        sys.stdout = None  # or closing it would fail again
        return ExitCode.OK
    return status if isinstance(status, int) else ExitCode.OK


def _print_error(exc: CliError) -> ExitCode:
    """Print the error in one line on standard error; with --json as an envelope on standard output."""
    if "--json" in sys.argv:
        sys.stdout.write(json.dumps(exc.envelope, ensure_ascii=False) + "\n")
    else:
        lines = [f"berth: {exc.line}", *(f"  {printable(line)}" for line in exc.details)]
        sys.stderr.write("\n".join(lines) + "\n")
    return exc.exit_code
