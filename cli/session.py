"""Common to all commands: the server's URL, the output, and the decorator that adds these options."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import VERSION
from cli.errors import CliError, ExitCode
from cli.reach import WHERE
from cli.server import Server

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

DEFAULT_URL = "http://127.0.0.1:5000"
_WIDE = 10_000  # columns without a terminal, so that nothing is cut


@dataclass(frozen=True)
class Session:
    """One run of `berth`."""

    url: str
    api_key: str | None
    as_json: bool

    def server(self) -> Server:
        """The server. Raises CliError for an invalid URL."""
        return Server(self.url, self.api_key)

    @cached_property
    def out(self) -> Console:
        """Standard output; without colours if it isn't a terminal or NO_COLOR is set."""
        from rich.console import Console

        width = None if sys.stdout.isatty() else _WIDE
        return Console(highlight=False, markup=False, emoji=False, width=width)

    @cached_property
    def err(self) -> Console:
        """Standard error: progress and remarks."""
        from rich.console import Console

        return Console(stderr=True, highlight=False, markup=False, emoji=False)

    def say(self, text: str | Text) -> None:
        """Print lines on standard output; the terminal wraps long ones."""
        self.out.print(text, soft_wrap=True)

    def remark(self, text: str, style: str = "dim") -> None:
        """Print on standard error, for everything but the result itself."""
        self.err.print(text, style=style, soft_wrap=True)

    @contextmanager
    def waiting(self, what: str) -> Iterator[Callable[[str], None]]:
        """A spinner on standard error, if it is a terminal; the yielded function changes its text."""
        from rich.text import Text

        if self.as_json or not self.err.is_terminal:
            yield lambda _text: None
            return
        with self.err.status(Text(f"{what} …")) as status:
            yield lambda text: status.update(Text(text))

    def print_json(self, value: Any, *, indent: int | None = 2) -> None:
        """Print one JSON document on standard output, unbuffered."""
        sys.stdout.write(json.dumps(value, indent=indent, ensure_ascii=False) + "\n")
        sys.stdout.flush()


Url = Annotated[str | None, typer.Option(help="Berth's URL, instead of BERTH_URL")]
ApiKey = Annotated[str | None, typer.Option(help="API key, instead of BERTH_API_KEY")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, also for errors")]

_SHARED = {"url": Url, "api_key": ApiKey, "as_json": Json}


def with_session(function: Callable[..., None]) -> Callable[..., None]:
    """Add --url, --api-key and --json to a command whose first parameter is the session.

    They are allowed before and after the command; those after it win.
    """
    own = inspect.signature(function, eval_str=True)
    _, *parameters = own.parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY

    @wraps(function)
    def command(
        ctx: typer.Context, url: str | None, api_key: str | None, as_json: bool, **given: Any
    ) -> None:
        before = ctx.find_root().params
        session = Session(
            url=url or before.get("url") or DEFAULT_URL,
            api_key=api_key or before.get("api_key"),
            as_json=as_json or bool(before.get("as_json")),
        )
        try:
            function(session, **given)
        except (LookupError, TypeError, AttributeError) as exc:  # a field is missing or has another type
            message = f"{session.url} answered differently from Berth {VERSION} ({type(exc).__name__}: {exc})"
            raise CliError(message, ExitCode.UNREACHABLE, next_step=WHERE) from exc

    shared = [
        inspect.Parameter(name, keyword, default=False if name == "as_json" else None, annotation=annotation)
        for name, annotation in _SHARED.items()
    ]
    context = inspect.Parameter("ctx", keyword, annotation=typer.Context)
    ordered = [context, *(one.replace(kind=keyword) for one in parameters), *shared]
    command.__signature__ = own.replace(parameters=ordered)  # type: ignore[attr-defined]  # what Typer reads
    command.__annotations__ = {one.name: one.annotation for one in ordered}
    return command
