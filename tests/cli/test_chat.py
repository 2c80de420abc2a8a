"""`berth run`: one question, and a chat at a pseudo-terminal."""

from __future__ import annotations

import json
import re

import pytest

from tests.cli.command import CTRL_C, CTRL_D, berth, terminal
from tests.cli.talking_engine import BREAK, FOREVER

pytestmark = pytest.mark.timeout(120)


def test_a_question_prints_only_the_answer(url: str) -> None:
    ran = berth(url, "run", "talker", "Hello", "--system", "Be short", "--set", "temperature=0.5")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("[Hello] after 0, system=Be short, temperature=0.5")
    assert "Hm." not in ran.stdout  # reasoning is shown at a terminal only


def test_piped_input_is_the_question_or_is_appended_to_it(url: str) -> None:
    assert "[from a pipe]" in berth(url, "run", "chatty", stdin="from a pipe\n").stdout
    assert "[Explain\n\nx = 1]" in berth(url, "run", "talker", "Explain", stdin="x = 1\n").stdout
    empty = berth(url, "run", "talker", stdin=" \n")
    assert (empty.returncode, "the prompt is empty" in empty.stderr) == (2, True)


def test_json_output_is_the_complete_response(url: str) -> None:
    answer = json.loads(berth(url, "run", "talker", "Hello", "--json").stdout)
    assert answer["choices"][0]["message"]["content"].startswith("[Hello]")


def test_an_error_in_the_stream_is_shown_in_one_line(url: str) -> None:
    ran = berth(url, "run", "talker", BREAK)
    assert (ran.returncode, ran.stderr) == (1, "berth: the engine is broken\n")


def test_an_unknown_model_is_reported_with_the_next_step(url: str) -> None:
    ran = berth(url, "run", "talkre", "Hello")
    assert ran.returncode == 4
    assert "talker" in ran.stderr
    assert "berth list" in ran.stderr


def test_a_chat_session(url: str) -> None:
    with terminal(url, "run", "talker") as chat:
        chat.expect(">>> ")  # earlier, a key would reach no editor
        chat.type("one\r")
        chat.expect("[one] after 0, system=None, temperature=None")
        assert "\x1b[2mHm." in chat.raw  # dim
        chat.expect("\ufffd[31mesc")  # an answer can't steer the terminal
        chat.expect(">>> ")
        chat.type("/set temperature 0.2\r")
        chat.expect("temperature=0.2")
        chat.expect(">>> ")
        chat.type("/?\r")
        chat.expect("/bye")
        chat.expect(">>> ")
        chat.type("/show\r")
        chat.expect("chatty")  # an alias
        chat.expect(">>> ")
        chat.type("/system Be kind\r")
        chat.expect("system message set")
        chat.expect(">>> ")
        chat.type('"""two\r')
        chat.expect("... ")
        chat.type('lines"""\r')
        chat.expect("[two\nlines] after 2, system=Be kind, temperature=0.2")
        chat.expect(">>> ")
        chat.type("/clear\r")
        chat.expect("messages cleared")
        chat.expect(">>> ")
        chat.type("/nonsense\r")
        chat.expect("/nonsense is not a command")
        chat.expect(">>> ")
        chat.type(f"{BREAK}\r")
        chat.expect("berth: the engine is broken")
        chat.expect(">>> ")
        chat.type("three\r")
        chat.expect("[three] after 0, system=Be kind")
        chat.expect(">>> ")
        chat.type(CTRL_D)
        assert chat.wait() == 0


def test_ctrl_c_stops_only_the_answer(url: str) -> None:
    with terminal(url, "run", "talker", NO_COLOR="1") as chat:
        chat.expect(">>> ")
        chat.type(f"{FOREVER}\r")
        chat.expect("(reasoning)\nHm.\n(response)\nmore more more")
        assert not re.search(r"\x1b\[3\dm|\x1b\[2mHm", chat.raw)
        chat.type(CTRL_C)
        chat.expect("(stopped)")
        chat.expect(">>> ")
        chat.type("and now\r")
        chat.expect("[and now] after 2")  # the response so far is kept
        chat.expect(">>> ")
        chat.press_until(CTRL_C, "Ctrl-D or /bye exits")
        chat.expect(">>> ")
        chat.type("/exit\r")
        assert chat.wait() == 0
    with terminal(url, "logs", "talker", "-f") as logs:
        logs.expect("the client has left")  # the engine noticed
        logs.type(CTRL_C)
        assert logs.wait() == 130


def test_ctrl_c_ends_a_single_question(url: str) -> None:
    with terminal(url, "run", "talker", FOREVER) as asked:
        asked.expect("more more")
        asked.type(CTRL_C)
        assert asked.wait() == 130
        assert "Traceback" not in asked.screen


def test_verbose_shows_tokens_as_counted_by_the_engine(url: str) -> None:
    ran = berth(url, "run", "talker", "Hello", "--verbose")
    assert ran.returncode == 0
    reported = dict(line.split(":", 1) for line in ran.stderr.splitlines())
    assert (reported["prompt tokens"].strip(), reported["answer tokens"].strip()) == ("7", "5")
    assert reported["answer rate"].endswith("tokens/s")


def test_lines_end_between_words(url: str) -> None:
    with terminal(url, "run", "talker", "word " * 60) as asked:  # 200 columns
        assert asked.wait() == 0
        lines = asked.screen.splitlines()
    assert max(map(len, lines)) <= 200
    assert not any(line.strip() in ("w", "wo", "wor", "ord", "rd", "d") for line in lines)
    assert all(line.rstrip().endswith("word") for line in lines if line.count("word") > 20)
