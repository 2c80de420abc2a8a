"""A new flag is one field: the help, the parser, the range check, the manager's table and the copy follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig, flag
from engine.errors import ConfigError
from engine.launch import flag_parser, flags
from engine.launch.flag_table import flag_table


@dataclass(frozen=True, slots=True, kw_only=True)
class ScratchConfig(EngineConfig):
    max_num_widgets: int | None = flag(None, help="maximum number of widgets in a step")
    widget_share: float = flag(0.5, "--widget-fraction", "--widgets", kind="fraction")
    widget_colour: str = flag("red", choices=("red", "blue"))
    widget_names: tuple[str, ...] = flag(("a",))
    widget_paths: Path | None = flag(None)
    widget_options: Mapping[str, Any] = flag(dict)
    has_widgets: bool = flag(
        True, "--disable-widgets", is_negated=True, also={"--paint-widgets": "in colour"}
    )


@pytest.fixture(autouse=True)
def _scratch_config(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (flag_parser, flags):
        monkeypatch.setattr(module, "EngineConfig", ScratchConfig)


def parse(*words: str) -> ScratchConfig:
    config = flags.parse_flags(["model", *words], {}).engine
    assert isinstance(config, ScratchConfig)
    return config


def test_it_is_in_the_help_beside_the_group_s_others(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    engine = capsys.readouterr().out.partition("\nengine:\n")[2].partition("\nserver:\n")[0]
    for line in (
        "--max-num-widgets MAX_NUM_WIDGETS\n",
        "maximum number of widgets in a step\n",
        "--widget-fraction WIDGET_FRACTION, --widgets WIDGET_FRACTION\n",
        "--widget-colour {red,blue}\n",
        "--widget-names WIDGET_NAMES [WIDGET_NAMES ...]\n",
        "--disable-widgets, --no-disable-widgets\n",
        "--paint-widgets, --no-paint-widgets\n",
    ):
        assert line in engine


def test_without_the_flag_the_field_has_its_default() -> None:
    config = parse()
    assert config == ScratchConfig(model=Path("model"))
    assert (config.max_num_widgets, config.widget_share, config.widget_names) == (None, 0.5, ("a",))


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--max-num-widgets", "4k"], "max_num_widgets", 4000),
        (["--max_num_widgets=2"], "max_num_widgets", 2),
        (["--widget-fraction", "1"], "widget_share", 1.0),
        (["--widgets", "0.25"], "widget_share", 0.25),
        (["--widget-colour", "blue"], "widget_colour", "blue"),
        (["--widget-names", "b", "c"], "widget_names", ("b", "c")),
        (["--widget-paths", "/w"], "widget_paths", Path("/w")),
        (["--widget-options", '{"a": 1}'], "widget_options", {"a": 1}),
        (["--disable-widgets"], "has_widgets", False),
        (["--no-disable-widgets"], "has_widgets", True),
    ],
)
def test_its_value_reaches_the_config(words: list[str], field: str, value: object) -> None:
    assert getattr(parse(*words), field) == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-num-widgets", "0"], "--max-num-widgets: '0' is not a whole number above 0"),
        (["--widgets", "1.5"], "--widget-fraction/--widgets: 1.5 must be above 0 and at most 1"),
        (["--widget-colour", "green"], "--widget-colour: invalid choice: 'green'"),
        (["--widget-options", "[]"], "--widget-options: '[]' is not a JSON object"),
        (["--widget-names"], "--widget-names: expected at least one argument"),
        (["--max-num-widget", "1"], "did you mean --max-num-widgets"),
    ],
)
def test_a_wrong_value_is_refused_by_the_flag_s_name(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(*words)
    assert message in str(caught.value)


def test_the_manager_s_table_has_it() -> None:
    table = flag_table()["flags"]
    assert table["max-num-widgets"] == {"kind": "count", "is_ours": True}
    assert table["widgets"] == table["widget-fraction"] == {"kind": "fraction", "is_ours": True}
    assert table["widget-colour"] == {"kind": "text", "choices": ["red", "blue"], "is_ours": True}
    assert table["disable-widgets"] == table["paint-widgets"] == {"kind": "switch", "is_ours": True}
