"""The command line of app.py: every setting as a flag, the usual short names of such services, nothing else.

Knows the settings' names and descriptions; their values are checked where they are read.
"""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from configs.home import expand_home
from configs.near_names import nearest
from configs.settings import Settings
from configs.settings_reader import Given

# Names of settings in similar services. Their concurrency limit protects the model, not the sockets.
SHORT_NAMES: Mapping[str, str] = {
    "--host": "app_host",
    "--port": "app_port",
    "--debug": "app_debug",
    "--model": "default_model",
    "--model-name": "default_model",
    "--limit-concurrency": "max_in_flight",
}


_PATHS = frozenset(
    {"api_keys_file", "vllm_config", "hf_home", "models_file", "state_dir", "log_dir", "log_file"}
)


class FlagError(Exception):
    """An invalid command line; the message is one line."""


@dataclass(frozen=True, slots=True)
class ServiceFlags:
    """The parsed command line."""

    given: Mapping[str, Given]  # settings, by field
    check: bool = False  # check everything, serve nothing
    as_json: bool = False


def parse_flags(argv: Sequence[str], version: str) -> ServiceFlags:
    """Read `argv` (without the program's name). Raises FlagError; `--help` and `--version` print and exit."""
    parser = _build_parser(version)
    namespace, unknown = parser.parse_known_args([_normalised(word) for word in argv])
    if unknown:
        raise FlagError(_describe_unknown(unknown[0], parser))
    if namespace.json and not namespace.check:
        raise FlagError("--json needs --check; for logs in JSON use --log-format json")
    given: dict[str, Given] = namespace.given
    if namespace.relative_to is not None:
        given = {field: _located(field, one, Path(namespace.relative_to)) for field, one in given.items()}
    return ServiceFlags(given, namespace.check, namespace.json)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise FlagError(message)


class _Setting(argparse.Action):
    """Stores a setting's value with the name under which it was given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        flag: str | None = None,
    ) -> None:
        name = flag or ""
        value = "false" if name.startswith("--no-") and self.const is not None else str(values)
        namespace.given[self.dest] = Given(name, value)


def _build_parser(version: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="app.py",
        allow_abbrev=False,
        usage="%(prog)s [--SETTING VALUE] …",
        description="Serve Berth. Each flag is a setting and overrides the environment and .env.",
        epilog="Engine flags aren't settings: they belong in models.yaml, in the file VLLM_CONFIG or in a "
        "request's params.",
    )
    parser.set_defaults(given={})
    parser.add_argument("--version", action="version", version=f"Berth {version}")
    parser.add_argument(
        "--check", action="store_true", help="check settings and models, report all mistakes, and exit"
    )
    parser.add_argument("--json", action="store_true", help="with --check: report in JSON")
    parser.add_argument(
        "--relative-to",
        metavar="DIR",
        help="the base folder of relative paths in flags; default: the current folder",
    )
    short: dict[str, list[str]] = {}
    for name, field in SHORT_NAMES.items():
        short.setdefault(field, []).append(name)
    for field, info in Settings.model_fields.items():
        names = [*short.get(field, ()), _flag_of(field)]
        text = (info.description or "").replace("%", "%%")
        if info.annotation is bool:
            negated = [f"--no-{name.removeprefix('--')}" for name in names]
            parser.add_argument(
                *names, dest=field, action=_Setting, nargs="?", const="true", metavar="false", help=text
            )
            parser.add_argument(
                *negated, dest=field, action=_Setting, nargs=0, const="false", help=argparse.SUPPRESS
            )
        else:
            parser.add_argument(*names, dest=field, action=_Setting, metavar="VALUE", help=text)
    return parser


def _flag_of(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _located(field: str, given: Given, folder: Path) -> Given:
    """A path relative to `folder`."""
    if field == "model_dirs":
        parts = (str(folder / expand_home(part)) for part in given.value.split(os.pathsep) if part)
        return Given(given.name, os.pathsep.join(parts))
    is_path = field in _PATHS or (field == "vllm_python" and "/" in given.value)
    return Given(given.name, str(folder / expand_home(given.value))) if is_path and given.value else given


def _normalised(word: str) -> str:
    """`--APP_PORT=5001` in the parser's form."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-").lower() + equals + value if word.startswith("--") else word


def _describe_unknown(word: str, parser: argparse.ArgumentParser) -> str:
    name = word.partition("=")[0]
    if not name.startswith("-"):
        return f"{name!r} isn't a flag; give settings as --name value; --help lists them"
    known = {flag.strip("-").replace("-", "_"): flag for flag in parser._option_string_actions}
    word = name.strip("-").replace("-", "_")
    close = nearest(word, known) or next(iter(difflib.get_close_matches(word, known, n=1, cutoff=0.75)), None)
    if close is not None:
        return f"there is no flag {name}; did you mean {known[close]}?"
    return (
        f"there is no flag {name}; --help lists them. Engine flags belong in models.yaml, in the file "
        "VLLM_CONFIG or in a request's params"
    )
