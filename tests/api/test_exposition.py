"""Merging metrics pages: for any input, the output is readable by Prometheus's own parser."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from api.control.exposition import Exposition
from engine.core.types import EngineStats
from engine.server.model.metrics import Metrics

ONE = """\
# HELP up Whether it is.
# TYPE up gauge
up{zone="a"} 1
# TYPE wait_seconds histogram
wait_seconds_bucket{le="1"} 2
wait_seconds_bucket{le="+Inf"} 3
wait_seconds_sum 4.5
wait_seconds_count 3
plain 7 1700000000000
"""


def families(page: Exposition) -> dict[str, Metric]:
    """The families as the parser reads them; each may occur only once."""
    text = page.render()
    assert [line for line in text.splitlines() if line.startswith("# TYPE")] == list(
        dict.fromkeys(line for line in text.splitlines() if line.startswith("# TYPE"))
    )
    found = list(text_string_to_metric_families(text))
    by_name = {family.name: family for family in found}
    assert len(by_name) == len(found)
    return by_name


def test_families_of_several_pages_occur_once() -> None:
    page = Exposition()
    assert page.add(ONE, {"instance": "a"}) == 0
    assert page.add(ONE, {"instance": "b"}) == 0
    merged = families(page)
    assert {name: family.type for name, family in merged.items()} == {
        "up": "gauge",
        "wait_seconds": "histogram",
        "plain": "unknown",
    }
    assert [sample.labels for sample in merged["up"].samples] == [
        {"instance": "a", "zone": "a"},
        {"instance": "b", "zone": "a"},
    ]
    assert len(merged["wait_seconds"].samples) == 8
    assert [sample.value for sample in merged["plain"].samples] == [7, 7]
    assert [sample.timestamp for sample in merged["plain"].samples] == [None, None]
    assert merged["up"].documentation == "Whether it is."


def test_the_embedded_engines_page_is_taken_whole() -> None:
    engine = Metrics("m", lambda: EngineStats(cache_config={"block_size": "16"}))
    engine.expect_lengths(100)
    engine.observe_end("length", end_to_end_s=1.0, decode_s=0.5)
    engine.observe_lengths(prompt=7, generated=2)
    page = Exposition()
    assert page.add(engine.render().decode(), {"instance": "a", "model": "m"}) == 0
    merged = families(page)
    assert "vllm:generation_tokens" in merged
    (info,) = merged["vllm:cache_config_info"].samples
    assert (info.value, info.labels["block_size"], info.labels["instance"]) == (1, "16", "a")
    for name, value in (("request_prompt_tokens", 7), ("request_generation_tokens", 2)):
        values = {sample.name: sample.value for sample in merged[f"vllm:{name}"].samples}
        assert values[f"vllm:{name}_sum"] == value


def test_a_label_of_the_same_name_is_renamed() -> None:
    page = Exposition()
    page.add('x{instance="own",le="1"} 1\n', {"instance": "a"})
    (sample,) = families(page)["x"].samples
    assert sample.labels == {"instance": "a", "exported_instance": "own", "le": "1"}


def test_values_are_escaped_and_unchanged() -> None:
    page = Exposition()
    page.add(r'x{own="a\"}\\ 1\nb"} 1', {"instance": 'q"\\\n}'})
    (sample,) = families(page)["x"].samples
    assert sample.labels == {"instance": 'q"\\\n}', "own": 'a"}\\ 1\nb'}


@pytest.mark.parametrize(
    "line",
    [
        "no sample at all",
        "x 1 2 3",
        "x one",
        "x 1_000",
        "x{",
        'x{a="b} 1',
        'x{a="b"c="d"} 1',
        'x{a="\\x"} 1',
        'x{a="1",a="2"} 1',
        'x{instance="1",exported_instance="2"} 1',
        'x{__name__="berth_instances"} 1',
        "berth_instances 9",
        "1x 1",
        'x{} 1 # {trace_id="1"} 1',
    ],
)
def test_invalid_samples_are_left_out_and_counted(line: str) -> None:
    page = Exposition()
    assert page.add(f"good 1\n{line}\nalso_good 2\n", {"instance": "a"}) == 1
    assert set(families(page)) == {"good", "also_good"}


def test_a_contradicting_type_is_left_out() -> None:
    page = Exposition()
    page.add("# TYPE x gauge\nx 1\n# TYPE y histogram\ny_count 1\ny_sum 1\n", {"instance": "a"})
    assert page.add("# TYPE x counter\nx 2\ny_count 3\nz 1\n", {"instance": "b"}) == 2
    merged = families(page)
    assert [sample.value for sample in merged["x"].samples] == [1]
    assert set(merged) == {"x", "y", "z"}


def test_a_duplicate_sample_counts_once() -> None:
    page = Exposition()
    assert page.add('x{a="1"} 1\nx{a="1"} 2\n', {"instance": "a"}) == 1
    assert [sample.value for sample in families(page)["x"].samples] == [1]


@given(
    st.lists(
        st.one_of(
            st.text(max_size=30),
            st.from_regex(r"# (TYPE|HELP) [ab](_sum)? (gauge|histogram|summary|x\\)", fullmatch=True),
            st.from_regex(r'[ab](_sum|_count)?(\{[ab]="[^\n"]{0,4}",?\})? [0-9.e+-]{1,4}', fullmatch=True),
        ),
        max_size=12,
    )
)
def test_the_output_is_valid_for_any_input(lines: list[str]) -> None:
    page = Exposition()
    page.add("\n".join(lines), {"instance": "1"})
    page.add("\n".join(reversed(lines)), {"instance": "2"})
    for family in families(page).values():
        for sample in family.samples:
            assert sample.labels["instance"] in ("1", "2")


@pytest.mark.parametrize(
    "line",
    [
        "a \u0661\u0662\u0663",  # digits, and no number
        "a 1e9999",  # exceeds a double: an error for parsers
        "a " + "1" * 400,
        "a 0x10",
        "a 1_000",
        'a{b="\x00"} 1',
        'a{b="x\ry"} 1',
        'a{b="' + "x" * 20_000 + '"} 1',
        'h_bucket{le="many"} 1',
        'h_bucket{le="1_0"} 1',
        's{quantile="most"} 1',
    ],
)
def test_a_line_that_would_break_the_page_is_left_out(line: str) -> None:
    page = Exposition()
    types = "# TYPE h histogram\n# TYPE s summary\n"
    assert page.add(f"{types}{line}\ngood 1\n", {}) == 1
    assert page.render() == "# TYPE good untyped\ngood 1\n"


def test_help_is_made_valid_for_one_line() -> None:
    page = Exposition()
    page.add("# HELP a c:\\dir \\n \\\\ \x1b[2J\x00end\\\na 1\n", {})
    assert page.render().splitlines()[0] == r"# HELP a c:\\dir \n \\  [2J end\\"


def test_many_long_lines_are_fast() -> None:
    page = Exposition()
    began = time.monotonic()
    lines = ['a{b="' + "x" * 1_000_000, "a{" * 500_000, 'a{b="c",' * 200_000, "# HELP a " + "\\" * 1_000_000]
    assert page.add("\n".join(lines), {}) == 3
    assert time.monotonic() - began < 0.25
