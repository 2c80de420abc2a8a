"""Errors in models.yaml: each is one line with the place, the problem and what is allowed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from composition.policies import engine_kinds
from configs.catalog import Catalog, CatalogFile, load_catalog, parse_catalog
from configs.catalog_error import CatalogError
from configs.engine_kinds import one_of

KINDS = engine_kinds()

PATH = Path("/somewhere/models.yaml")


def mistake(text: str) -> str:
    with pytest.raises(CatalogError) as raised:
        parse_catalog(text, PATH, KINDS)
    assert "\n" not in str(raised.value)
    assert raised.value.line is not None
    return str(raised.value).removeprefix("/somewhere/models.yaml:")


def test_all_errors_are_reported_at_once() -> None:
    text = "models:\n  a:\n    timeout: -1\n    max_modellen: 5\n  b: {pinned: maybe}\n  c: {}\n  d: []\n"
    with pytest.raises(CatalogError) as raised:
        parse_catalog(text, PATH, KINDS)
    places = [line.split(": ")[0].removeprefix("/somewhere/models.yaml:") for line in raised.value.lines]
    assert sorted(places) == ["3", "4", "5", "7"]
    assert raised.value.lines[0] == str(raised.value)


@pytest.mark.parametrize(
    ("text", "places"),
    [
        (
            "defaults:\n  timout: 5\nmodels:\n  a: {timeout: -1}\n  b: {aliases: [x, x]}\n",
            ["2: defaults.timout", "4: models.a.timeout=-1", "5: models.b.aliases.1='x'"],
        ),
        (
            "modles: {}\ndefaults: {timeout: soon}\nmodels: {a: {pinned: 3}}\nlast: 1\n",
            ["1: modles", "2: defaults.timeout='soon'", "3: models.a.pinned=3", "4: last"],
        ),
        ("defaults: [1]\nmodels: {a: {pinned: 3}}\n", ["1: defaults=[1]", "2: models.a.pinned=3"]),
        (
            "models:\n  a: {aliases: [b]}\n  b: {aliases: [..]}\n  c: {aliases: [a]}\n",
            ["2: models.a.aliases.0='b'", "3: models.b.aliases.0='..'", "4: models.c.aliases.0='a'"],
        ),
        (  # a wrong value in defaults is reported once, there
            "defaults: {timeout: -1, pinned: 3}\nmodels: {a: {}, b: {}}\n",
            ["1: defaults.pinned=3", "1: defaults.timeout=-1"],
        ),
        (
            "defaults: {max_replicas: 2}\nmodels: {a: {min_replicas: 3}}\nx: 1\n",
            ["1: defaults.max_replicas=2", "3: x"],
        ),
    ],
)
def test_no_error_hides_another_and_none_is_reported_twice(text: str, places: list[str]) -> None:
    with pytest.raises(CatalogError) as raised:
        parse_catalog(text, PATH, KINDS)
    lines = [line.removeprefix("/somewhere/models.yaml:") for line in raised.value.lines]
    found = [": ".join(line.split(": ")[:2]) for line in lines]
    assert sorted(found) == places
    assert [one.split(":")[0] for one in found] == [one.split(":")[0] for one in places], (
        "as they stand there"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1\n", "2: invalid YAML: "),
        ("models:\n\ta: 1\n", "2: invalid YAML: "),
        ("models:\n  a:\n    timeout: \x01\n", "3: invalid YAML: unacceptable character"),
        ("models: {}\n---\nmodels: {}\n", "2: invalid YAML: expected a single document"),
        ("models: {a: {timeout: " + "9" * 5000 + "}}", "1: invalid YAML: Exceeds the limit"),
        ("models: " + "[" * 5000, "1: is nested more than 32 deep"),
        ("models:\n  a: *b\n", "2: invalid YAML: found undefined alias 'b'"),
        ("models:\n  a: &b\n    params: {x: *b}\n", "2: models.a.params.x: an alias refers to a node that"),
        (
            "models:\n  a:\n    params: {since: 2020-01-01}\n",
            "3: models.a.params.since: '2020-01-01' is a date;",
        ),
        (
            "models:\n  a:\n    params: !!set {x}\n",
            "3: models.a.params: the tag tag:yaml.org,2002:set isn't",
        ),
        (
            "models:\n  a:\n    path: !!python/object:os.x 1\n",
            "3: models.a.path: '1' is a value with the tag",
        ),
        ("models:\n  1.5: {}\n", "2: models: the key '1.5' isn't text; put it in quotes"),
        ("models:\n  a:\n    ? [x]\n    : 1\n", "3: models.a: the key a list or mapping isn't text"),
        ("models:\n  a:\n    timeout: 1\n    timeout: 2\n", "4: models.a.timeout: is given twice"),
        ("models:\n  a: {}\n  a: {}\n", "3: models.a: is given twice"),
    ],
)
def test_invalid_yaml_is_reported(text: str, expected: str) -> None:
    assert mistake(text).startswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a\n", "1: must be a mapping"),
        ("models: [a]\n", "1: models=['a']: must be a mapping (`key: value`)"),
        ("llama: {}\n", "1: llama: unknown key; known keys: defaults, models; models belong under `models`"),
        ("models:\n  a: text\n", "2: models.a='text': must be a mapping"),
        ("models:\n  a//b: {}\n", "2: models.a//b: a name must be printable text"),
        ("models:\n  ' a': {}\n", "2: models. a: a name must be printable text"),
        ("models:\n  a/../b: {}\n", "2: models.a/../b: a name must be printable text"),
        ("defaults:\n  path: x\n", "2: defaults.path: unknown key; "),
        (
            "defaults:\n  timeout: soon\nmodels: {a: {}}\n",
            "2: defaults.timeout='soon': must be a valid number",
        ),
        ("defaults:\n  min_replicas: 2\n", "1: defaults.max_replicas=1: must be min_replicas (2) or more"),
        (
            "models:\n  a: {}\n  b:\n    aliases: [x, a]\n",
            "4: models.b.aliases.1='a': is already a name of 'a'",
        ),
        (
            "models:\n  a: {aliases: [x]}\n  b: {aliases: [x]}\n",
            "3: models.b.aliases.0='x': is already a name of 'a'",
        ),
        ("models:\n  a:\n    aliases: [x, x]\n", "3: models.a.aliases.1='x': is already a name of 'a'"),
        ("models:\n  a:\n    aliases: [a]\n", "3: models.a.aliases.0='a': is already a name of 'a'"),
        (
            "models:\n  a:\n    aliases: [x/]\n",
            "3: models.a.aliases.0='x/': an alias must be a valid model name",
        ),
    ],
)
def test_inconsistent_entries_are_reported(text: str, expected: str) -> None:
    assert mistake(text).startswith(expected)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("max_modl_len: 5", ".max_modl_len: unknown key; did you mean max_model_len?"),
        ("Max-Model-Len: 5", ".Max-Model-Len: unknown key; did you mean max_model_len?"),
        ("colour: red", ".colour: unknown key; known keys: engine, params,"),
        ("engine: vlm", f".engine='vlm': must be {one_of(KINDS.for_models)}; did you mean vllm?"),
        (
            "expire_action: sleep",
            ".expire_action='sleep': must be 'stop', 'sleep1' or 'sleep2'; did you mean",
        ),
        ("dtype: int3", ".dtype='int3': must be 'auto', 'half',"),
        ("max_model_len: '4096'", ".max_model_len='4096': must be a valid integer"),
        ("max_model_len: 0", ".max_model_len=0: must be greater than or equal to 1"),
        ("max_model_len: true", ".max_model_len=True: must be a valid integer"),
        ("gpu_memory_utilization: 1.1", ".gpu_memory_utilization=1.1: must be less than or equal to 1"),
        ("gpu_memory_utilization: 0", ".gpu_memory_utilization=0: must be greater than 0"),
        ("timeout: -1", ".timeout=-1: must be greater than or equal to 0"),
        ("timeout: .inf", ".timeout=inf: must be a finite number"),
        ("pinned: yes", ".pinned='yes': must be a valid boolean"),
        ("preload: 1", ".preload=1: must be a valid boolean"),
        ("model: 7", ".model=7: must be text; put it in quotes"),
        ("model: ''", ".model='': must not be empty"),
        ("path: 7", ".path=7: must be a path"),
        ("path: ''", ".path='': must be a path"),
        ("params: [x]", ".params: must be a mapping"),
        ("params: {-x: 1}", ".params: '-x' isn't a valid flag name"),
        ("params: {a-b: 1, a_b: 2}", ".params: 'a-b' and 'a_b' are the same flag; keep one"),
        ("params: {x: [.nan]}", ".params: must be a finite number"),
        ("extra_args: --x", ".extra_args='--x': must be a list such as [--max-num-seqs, 8] or a mapping"),
        ("extra_args: [x]", ".extra_args: 'x' comes before any flag; a list begins with --name"),
        ("extra_args: [-tp, 2]", ".extra_args: '-tp' isn't a long flag; write it as --name or --name=value"),
        ("extra_args: [--x, [1]]", ".extra_args: [1] isn't a valid argument"),
        ("extra_args: [--a-b, --a_b=1]", ".extra_args: --a_b is given twice"),
        ("extra_args: {x=1: 2}", ".extra_args: 'x=1' isn't a valid flag name"),
        ("devices: [0, 0]", ".devices: must list each device once"),
        ("devices: ['0,1']", ".devices: must list each device once"),
        ("devices: [true]", ".devices.0=True: must be text"),
        ("aliases: x", ".aliases='x': must be a list"),
        ("aliases: [1]", ".aliases.0=1: must be text; put it in quotes"),
        ("min_replicas: 2", ".max_replicas=1: must be min_replicas (2) or more"),
        ("max_replicas: 0", ".max_replicas=0: must be greater than or equal to 1"),
        ("concurrency_limit: -1", ".concurrency_limit=-1: must be greater than or equal to 0"),
        ("env: {A: true}", ".env.A: must be text; put it in quotes"),
        ("env: {A=B: x}", ".env: 'A=B' can't be an environment variable"),
        ("command: run me", ".command='run me': must be a list"),
        ("command: []", ".command: must not be empty"),
        ("engine: command", ": `engine: command` needs a `command`"),
        ("{engine: vllm, command: [x]}", ": `command` needs `engine: command`, not vllm"),
        ("{path: x, model: y}", ": `path` and `model` exclude each other; keep one"),
        ("health_path: ready", ".health_path='ready': must begin with '/' and contain no spaces"),
        ("filters: x", ".filters='x': must be a mapping"),
        ("filters: {strip: [x]}", ".filters.strip: unknown key; did you mean strip_params?"),
        ("filters: {set_params: 1}", ".filters.set_params=1: must be a mapping"),
    ],
)
def test_an_invalid_field_is_reported(field: str, expected: str) -> None:
    """The line is the key's, or the model's if a key is missing or two contradict each other."""
    found = mistake(f"models:\n  other: {{}}\n  a:\n    {field}\n")
    line, _, rest = found.partition(": ")
    assert line == ("3" if expected.startswith((":", ".max_replicas=1")) else "4")
    assert rest.startswith(f"models.a{expected}")


def test_an_error_in_the_defaults_is_reported_at_its_own_line() -> None:
    error = mistake("defaults:\n  max_replicas: 1\nmodels:\n  a:\n    min_replicas: 3\n")
    assert error == "2: defaults.max_replicas=1: must be min_replicas (3) or more"


def test_values_of_variables_are_not_shown() -> None:
    assert "hunter2" not in mistake("models:\n  a:\n    env: {HF_TOKEN: [hunter2]}\n")
    assert "hunter2" not in mistake("models:\n  a:\n    params: [hunter2]\n")


def test_long_values_are_shortened() -> None:
    assert len(mistake("models:\n  a:\n    engine: " + "x" * 5000)) < 200


def test_an_unreadable_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="can't be read: Is a directory"):
        load_catalog(tmp_path)
    path = tmp_path / "models.yaml"
    path.write_bytes(b"models:\n  a: \xff\n")
    with pytest.raises(CatalogError, match=r"models\.yaml:2: byte 0xff isn't valid UTF-8"):
        load_catalog(path)


def test_an_explicit_reload_reports_the_error_again_and_keeps_the_old_catalog(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text("models:\n  a: {protocol: chat}\n")

    def check(catalog: Catalog) -> None:
        if any(entry.protocol == "none" for entry in catalog.models.values()):
            raise CatalogError(path, "there is no such protocol", keys=("models", "a", "protocol"))

    file = CatalogFile(path, check)
    old = file.current
    path.write_text("models:\n  a: {protocol: none}\n")
    for _ in range(2):
        with pytest.raises(CatalogError, match=r"models\.yaml:2: models\.a\.protocol: there is no such"):
            file.reload()
    assert file.reload_if_changed() is None and file.current is old
    os.replace(_written(tmp_path / "new", "models:\n  b: {}\n"), path)
    assert file.reload_if_changed() == frozenset({"a", "b"})
    assert file.reload() == frozenset()


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
