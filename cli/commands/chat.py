"""`berth run`: sends one prompt to a model, or chats with it."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Generator
from contextlib import closing
from typing import Annotated

import typer

from cli.answers import PATH, Piece, stream_answer
from cli.completion import complete_models
from cli.conversation import Conversation, Verb, command_in
from cli.errors import CliError, ExitCode, wrong_use
from cli.server import Server
from cli.session import Session, with_session
from cli.speed import Stopwatch
from cli.tables import details
from cli.target import record_for
from cli.terminal import AnswerWriter, read_message
from cli.values import key_values


@with_session
def run(
    session: Session,
    model: Annotated[str, typer.Argument(metavar="MODEL", autocompletion=complete_models)],
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="Without a PROMPT, at a terminal: a chat")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message")] = None,
    fields: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A field of the request, e.g. temperature=0.2"),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show tokens per second")] = False,
    nowordwrap: Annotated[
        bool,
        typer.Option("--nowordwrap", help="Let the terminal break lines anywhere, not only between words"),
    ] = False,
) -> None:
    """Prompt a model or chat with it; it is started if necessary.

    Standard input is the prompt, or is appended to PROMPT: git diff | berth run MODEL "Explain".
    """
    conversation = Conversation(model, system, key_values(fields or []), verbose, not nowordwrap)
    question = _question(prompt)
    with session.server() as server:
        if question is None:
            if session.as_json:
                raise wrong_use("--json needs a PROMPT", 'e.g. berth run MODEL "Hello" --json')
            _chat(session, server, conversation)
            return
        conversation.ask(question)
        if session.as_json:
            body = conversation.body(stream=False)
            session.print_json(server.request("POST", PATH, body=body, timeout_s=None))
        else:
            _answer(session, server, conversation, AnswerWriter(sys.stdout, word_wrap=conversation.word_wrap))


def register(app: typer.Typer) -> None:
    app.command()(run)


def _question(prompt: str | None) -> str | None:
    """The prompt with standard input appended; None for a chat at a terminal. Raises CliError."""
    if prompt is not None and not _is_piped():
        return prompt
    if sys.stdin.isatty():
        return None
    parts = [part for part in (prompt, sys.stdin.read().strip()) if part]
    if not parts:
        raise wrong_use("the prompt is empty", 'e.g. berth run MODEL "Hello"')
    return "\n\n".join(parts)


def _is_piped() -> bool:
    """Whether standard input is a file or a pipe, and thus has an end."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # it is closed
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _chat(session: Session, server: Server, conversation: Conversation) -> None:
    """Chat until Ctrl-D or /exit. An error in one response doesn't end the chat."""
    session.remark(f"{conversation.model}: /? lists the commands, Ctrl-D exits")
    while True:
        try:
            message = read_message()
        except EOFError:
            session.err.print()
            return
        except KeyboardInterrupt:
            session.remark("\nCtrl-D or /bye exits")
            continue
        try:
            command = command_in(message)
            if command is None:
                if message:
                    _exchange(session, server, conversation, message)
            elif command[0] is Verb.EXIT:
                return
            elif command[0] is Verb.SHOW and command[1] in ("", "info"):
                session.err.print(details(record_for(server, conversation.model)), soft_wrap=True)
            else:
                session.remark(conversation.execute(*command))
        except CliError as exc:
            session.remark(f"berth: {exc.line}", style="red")
            if exc.exit_code is ExitCode.NOT_ALLOWED:
                raise


def _exchange(session: Session, server: Server, conversation: Conversation, message: str) -> None:
    """One prompt and its response; Ctrl-C stops the response, and the text so far is kept."""
    conversation.ask(message)
    writer = AnswerWriter(sys.stdout, word_wrap=conversation.word_wrap)
    try:
        _answer(session, server, conversation, writer)
    except KeyboardInterrupt:
        session.remark("(stopped)")
    finally:
        conversation.answered(writer.text)


def _answer(session: Session, server: Server, conversation: Conversation, writer: AnswerWriter) -> None:
    watch = Stopwatch()
    with closing(_pieces(session, server, conversation)) as pieces:
        writer.write(watch.watching(pieces))
    if conversation.verbose:
        session.remark(watch.report())


def _pieces(session: Session, server: Server, conversation: Conversation) -> Generator[Piece]:
    """The next response; until it begins, a spinner at a terminal."""
    with closing(stream_answer(server, conversation.body(stream=True))) as pieces:
        with session.waiting(f"waiting for {conversation.model}"):
            first = next(pieces, None)
        if first is not None:
            yield first
            yield from pieces
