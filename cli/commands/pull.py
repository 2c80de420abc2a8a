"""`berth pull`: downloads a model and shows the progress."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.errors import CliError, ExitCode
from cli.refusals import refusal_in_stream
from cli.session import Session, with_session
from cli.tables import printable
from cli.units import size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_REPORT_INTERVAL_S = 5.0  # without a terminal
Line = dict[str, Any]


@with_session
def pull(
    session: Session,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model on the hub: OWNER/NAME, or OWNER/NAME:Q4_K_M")
    ],
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit")] = None,
) -> None:
    """Download a model. Ctrl-C stops the download; the same command resumes it.

    Of GGUF files one quantisation is taken: the one named, or Q4_K_M, else Q8_0, else the first.
    """
    body = {"model": model} | ({"revision": revision} if revision else {})
    try:
        with session.server() as server, server.stream("POST", "/models/pull", body=body) as response:
            done = _shown(session, model, server.json_lines(response))
    except KeyboardInterrupt:
        raise CliError(
            f"the download of {model} was stopped", ExitCode.INTERRUPTED, next_step="pull it again to resume"
        ) from None
    if done is None:
        raise CliError(
            f"the download of {model} broke off", ExitCode.UNREACHABLE, next_step="pull it again to resume"
        )
    if not session.as_json:
        session.say(f"{done['model']}: {size(done['size_bytes'])} in {done['path']}")


def register(app: typer.Typer) -> None:
    app.command()(pull)


def _shown(session: Session, model: str, lines: Iterator[Line]) -> Line | None:
    """Show every line in the appropriate form; returns the last one, of success. Raises CliError."""
    if session.as_json:
        return _as_json(session, lines)
    if session.err.is_terminal:
        return _as_bars(session, model, lines)
    return _as_text(session, model, lines)


def _as_json(session: Session, lines: Iterator[Line]) -> Line | None:
    for line in lines:
        if error := refusal_in_stream(line):
            raise error
        session.print_json(line, indent=None)
        if line.get("status") == "success":
            return line
    return None


def _says_choice(session: Session, line: Line, asked: str) -> None:
    """Which of a repository's quantisations is taken, where the user left it to Berth."""
    if line.get("status") == "resolving" and line.get("model", asked) != asked:
        session.err.print(printable(f"takes {line['model']}"), markup=False, highlight=False)


def _as_text(session: Session, model: str, lines: Iterator[Line]) -> Line | None:
    reported = -_REPORT_INTERVAL_S
    for line in lines:
        if error := refusal_in_stream(line):
            raise error
        if line.get("status") == "success":
            return line
        _says_choice(session, line, model)
        is_total = line.get("status") == "downloading" and line["file"] is None
        if is_total and time.monotonic() - reported >= _REPORT_INTERVAL_S:
            reported = time.monotonic()
            session.err.print(f"{size(line['completed'])} of {size(line['total'])}")
    return None


def _as_bars(session: Session, model: str, lines: Iterator[Line]) -> Line | None:
    """A bar for the total, and one for each file being downloaded."""
    with _bars(session) as progress:
        whole = progress.add_task(printable(model), total=None)
        files: dict[str, TaskID] = {}
        for line in lines:
            if error := refusal_in_stream(line):
                raise error
            if line.get("status") == "success":
                progress.update(whole, completed=line["size_bytes"], total=line["size_bytes"])
                return line
            _says_choice(session, line, model)
            if line.get("status") == "downloading":
                _advance(progress, whole, files, line)
    return None


def _advance(progress: Progress, whole: TaskID, files: dict[str, TaskID], line: Line) -> None:
    name = line["file"]
    if name is None:
        progress.update(whole, completed=line["completed"], total=line["total"])
        return
    if name not in files:
        files[name] = progress.add_task(f"  {printable(name)}", total=line["total"])
    progress.update(files[name], completed=line["completed"], total=line["total"])
    if line["completed"] >= line["total"]:
        progress.update(files[name], visible=False)


def _bars(session: Session) -> Progress:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.progress import TransferSpeedColumn as SpeedColumn

    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(), DownloadColumn(binary_units=True), SpeedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=session.err)
