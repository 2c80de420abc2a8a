"""Any content of .env, models.yaml or the key file is accepted, or one line says what is wrong and where.

A few hundred of each here; thousands with `make fuzz`.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from configs.catalog import load_catalog
from configs.catalog_error import CatalogError
from configs.key_file import KeyFileError, read_key_file
from configs.model_entry import ModelEntry
from configs.settings import Settings
from configs.settings_error import SettingsError
from configs.settings_reader import load_settings

NUM_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "20")) * 10
IS_LONG = NUM_EXAMPLES > 1000
FEW = settings(
    max_examples=NUM_EXAMPLES,
    deadline=None,
    database=None,
    derandomize=not IS_LONG,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
pytestmark = pytest.mark.timeout(36000 if IS_LONG else 300)

SECRET = "sk-5ca1ab1e"
SETTINGS = sorted(name.upper() for name in Settings.model_fields)


@pytest.fixture(autouse=True)
def _bare_environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in SETTINGS:
            patch.delenv(name, raising=False)
        yield


ODD_VALUES = "0 -1 1e309 nan inf true maybe auto [] {} , : / ~ ~nobody ${HOME} $( ' \"x 0x1F \u0661 1_000"
VALUES = st.one_of(
    st.sampled_from(ODD_VALUES.split()),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=30),
)
LINES = st.one_of(
    st.builds("{}={}".format, st.sampled_from(SETTINGS), VALUES),
    st.builds("{}={}".format, st.from_regex(r"[A-Z_]{1,20}", fullmatch=True), VALUES),
    st.text(max_size=60),
)


@FEW
@given(lines=st.lists(LINES, max_size=6))
def test_settings(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.env"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    try:
        loaded = load_settings(path)
        loaded.listed_keys()
    except SettingsError as error:
        assert len(str(error).splitlines()) == len(error.mistakes) > 0, str(error)
        for message in error.mistakes:
            assert re.match(r"[^=]+=|\S*fuzzed.env", message), message


@FEW
@given(name=st.sampled_from(SETTINGS), value=VALUES.filter(lambda text: "\0" not in text))
def test_one_setting_at_a_time(name: str, value: str) -> None:
    """The invalid setting is the one named, unless two settings contradict each other."""
    with pytest.MonkeyPatch.context() as patch:
        try:
            patch.setenv(name, value)
        except (ValueError, UnicodeError):
            return  # an environment can't hold it
        try:
            load_settings().listed_keys()
        except SettingsError as error:
            message = str(error)
            assert len(message.splitlines()) == 1, message
            assert message.startswith(f"{name}=") or (name == "VLLM_BASE_PORT" and "VLLM_MAX" in message)


FIELDS = [field.alias or name for name, field in ModelEntry.model_fields.items()]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.dates(),
    st.binary(max_size=5),
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)
ENTRIES = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=10), ANYTHING, max_size=4)
DOCUMENTS = st.one_of(
    st.fixed_dictionaries({"models": st.dictionaries(st.text(max_size=10), ENTRIES | ANYTHING, max_size=3)}),
    st.fixed_dictionaries({"defaults": ENTRIES | ANYTHING, "models": ANYTHING}),
    ANYTHING,
)


@FEW
@given(document=DOCUMENTS)
def test_catalogs(tmp_path_factory: pytest.TempPathFactory, document: object) -> None:
    """Valid YAML with invalid content."""
    written = io.StringIO()
    YAML().dump(document, written)
    check_catalog(tmp_path_factory, written.getvalue().encode("utf-8", "surrogatepass"))


MARKS = "models: a: - &x *x !!set ? : { } [ ] ' \" | # <<: --- ... %TAG timeout: params: 1 null 2020-01-01"
PIECES = st.sampled_from([*MARKS.split(), "\n", "  ", "\t", "\x00", "\ufeff", "\x85"])


@FEW
@given(raw=st.lists(PIECES, max_size=25).map(lambda parts: "".join(parts).encode()) | st.binary(max_size=60))
def test_almost_valid_yaml(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    check_catalog(tmp_path_factory, raw)


def check_catalog(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(raw)
    try:
        load_catalog(path)
    except CatalogError as error:
        message = str(error)
        assert len(message.splitlines()) == 1, message
        assert message.startswith(str(path)), message


WORDS = st.one_of(
    st.sampled_from(
        ["a:", "b:", ":", "admin", "models=", "models=a", "rate=1/s", "rate=", "burst=2", "#", "\n", "="]
    ),
    st.text(max_size=8),
)


@FEW
@given(words=st.lists(WORDS, max_size=12), place=st.integers(0, 12))
def test_files_of_keys(tmp_path_factory: pytest.TempPathFactory, words: list[str], place: int) -> None:
    path: Path = tmp_path_factory.getbasetemp() / "fuzzed.keys"
    path.write_bytes(" ".join([*words[:place], SECRET, *words[place:]]).encode("utf-8", "surrogatepass"))
    path.chmod(0o600)
    try:
        for line in read_key_file(path):
            assert line.name == SECRET or SECRET not in repr(line)
    except KeyFileError as error:
        message = str(error)
        assert len(message.splitlines()) == 1, message
        assert SECRET not in message
        assert message.startswith("line ") or "UTF-8" in message
