"""Which plug-ins are loaded, and the one-line errors for those that can't be."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from starlette.routing import Route

from api.control.app import ROUTERS
from api.gateway.engine_paths import UNVERSIONED
from api.protocols.registry import RESERVED, PluginError, load_protocols

ALPACA = "docs.examples.alpaca:AlpacaProtocol"
SUMMARIZE = "docs.examples.summarize:SummarizeProtocol"

BAD_PLUGINS = """
from api.protocols.base import ProtocolAdapter, ProtocolRequest
from api.protocols.generate import GenerateProtocol

class Good(GenerateProtocol):
    name = "good"
    route = "/good"

class NoName(GenerateProtocol):
    name = "Bad Name"

class NoRoute(GenerateProtocol):
    name, route = "noroute", "generate/"

class OurRoute(GenerateProtocol):
    name, route = "ours", "/instances/x"

class ModelsRoute(GenerateProtocol):
    name, route = "ours", "/v1/generate"

class NoSchema(GenerateProtocol):
    name, request_schema = "noschema", dict

class Abstract(ProtocolAdapter[ProtocolRequest]):
    name, route, request_schema = "abstract", "/abstract", ProtocolRequest

class Raises(GenerateProtocol):
    name = "raises"
    def __init__(self):
        raise LookupError("no such file\\nmore lines")

value = 5
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with plug-ins, and the metadata of an installed package with them."""
    (tmp_path / "bad_plugins.py").write_text(BAD_PLUGINS)
    (tmp_path / "broken_plugin.py").write_text("raise RuntimeError('it is broken')")
    metadata = tmp_path / "some_plugins-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: some-plugins\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[berth.protocols]\ngood = bad_plugins:Good\nunwanted = broken_plugin:Anything\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("bad_plugins", "broken_plugin"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def names(*plugins: str) -> list[str]:
    return [adapter.name for adapter in load_protocols(plugins)]


def test_without_plugins_the_built_in_protocols_are_loaded() -> None:
    assert names() == ["generate"]


def test_plugins_are_given_by_their_class() -> None:
    assert names(ALPACA, SUMMARIZE) == ["generate", "alpaca", "summarize"]


@pytest.mark.usefixtures("package")
def test_an_entry_point_is_loaded_only_if_listed() -> None:
    assert names() == ["generate"]
    assert names("good") == ["generate", "good"]
    assert "broken_plugin" not in sys.modules


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("plugin", "problem"),
    [
        (
            "nowhere",
            "no installed package has an entry point 'nowhere' in the group berth.protocols .available: good",
        ),
        ("nowhere:Class", "can't be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ("broken_plugin:Class", "can't be imported: RuntimeError: it is broken"),
        ("unwanted", "can't be imported: RuntimeError: it is broken"),
        (":Class", "write module:Class"),
        ("bad_plugins:", "write module:Class"),
        ("bad_plugins:Missing", "has no 'Missing'"),
        ("bad_plugins:value", "not a subclass of api.protocols.base.ProtocolAdapter"),
        ("bad_plugins:Abstract", "define the abstract create_prompt, from_openai"),
        ("bad_plugins:Raises", "can't be imported: LookupError: no such file$"),
        ("bad_plugins:NoName", "name = 'Bad Name' is invalid; use a-z"),
        ("bad_plugins:NoRoute", "route = 'generate/' is invalid; use a path such as '/noroute'"),
        ("bad_plugins:OurRoute", "the route '/instances/x' is reserved for Berth"),
        ("bad_plugins:ModelsRoute", "the route '/v1/generate' is reserved for Berth"),
        ("bad_plugins:NoSchema", "request_schema = <class 'dict'> is not a subclass of ProtocolRequest"),
        (
            "api.protocols.generate:GenerateProtocol",
            "the name 'generate' is already used by api.protocols.generate:Gen",
        ),
    ],
)
def test_an_unusable_plugin_is_reported_in_one_line(plugin: str, problem: str) -> None:
    with pytest.raises(PluginError, match=problem) as caught:
        load_protocols([plugin])
    assert str(caught.value).startswith(f"PROTOCOL_PLUGINS={plugin}: ")
    assert "\n" not in str(caught.value)


def test_a_plugins_traceback_is_in_the_debug_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "plugin_with_a_bug.py").write_text("def begin():\n    return 1 / 0\n\nbegin()\n")
    monkeypatch.syspath_prepend(tmp_path)
    with caplog.at_level("DEBUG", "berth.protocols"), pytest.raises(PluginError, match="ZeroDivisionError"):
        load_protocols(["plugin_with_a_bug:Any"])
    assert "return 1 / 0" in caplog.text


def test_two_plugins_of_one_name_clash() -> None:
    with pytest.raises(PluginError, match="'alpaca' is already used by docs"):
        load_protocols([ALPACA, ALPACA])


def test_berths_own_routes_are_reserved() -> None:
    """A new route of the control plane must be added to RESERVED too."""
    paths = [route.path for router in ROUTERS for route in router.routes if isinstance(route, Route)]
    assert len(paths) > 10
    paths += [path.decode() for path in UNVERSIONED] + ["/v1/", "/proxy/", "/upstream/"]
    assert {path.split("/")[1] for path in paths} <= RESERVED
