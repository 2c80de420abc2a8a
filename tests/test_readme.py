"""README and docs are true: their commands are run as they stand, against a Berth on another port."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli.errors import ExitCode
from composition.policies import engine_kinds
from configs.catalog import load_catalog
from tests.berth_process import ROOT, running_berth
from tests.fake_hub import running_hub

pytestmark = pytest.mark.timeout(240)

# In this order, each with what those before it have left.
PAGES = ("README.md", "docs/models.md", "docs/instances.md", "docs/cli.md")


def blocks(language: str, page: str = "README.md") -> list[str]:
    """A page's fenced blocks of a language, in order."""
    text = (ROOT / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def environment(port: int) -> dict[str, str]:
    """As a user's at whose machine Berth serves on `port`; `berth` is in PATH."""
    return {
        **os.environ,
        "NO_PROXY": "localhost",
        "PATH": f"{ROOT / 'cli'}{os.pathsep}{os.environ['PATH']}",
        "BERTH_PYTHON": sys.executable,
        "BERTH_URL": f"http://localhost:{port}",
    }


@pytest.mark.slow
def test_every_command_works_as_written(tmp_path: Path) -> None:
    """The hub is a stand-in."""
    text = "\n".join((ROOT / page).read_text() for page in PAGES)
    found = re.findall(r"^```(sh|python|yaml)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(found) >= 10
    models_file, cache = tmp_path / "models.yaml", str(tmp_path / "hub")
    with running_hub() as hub:
        hub.models["Qwen/Qwen3-0.6B"] = hub.models["berth/demo"]
        settings = {"MODELS_FILE": str(models_file), "HF_ENDPOINT": hub.url, "HF_HOME": cache}
        with running_berth(tmp_path, **settings, HF_HUB_CACHE=cache) as berth:
            for language, code in found:
                if language == "yaml":
                    with models_file.open("a") as file:  # below the models that are there already
                        file.write(code.removeprefix("models:\n") if file.tell() else code)
                    continue
                argv = ["bash", "-euo", "pipefail", "-c"] if language == "sh" else [sys.executable, "-c"]
                ran = subprocess.run(
                    [*argv, code.replace("localhost:5000", f"localhost:{berth.port}")],
                    cwd=tmp_path,
                    env=environment(berth.port),
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    timeout=120,
                )
                assert ran.returncode == 0, f"{code}\n{ran.stdout}\n{ran.stderr}\n{berth.output()}"
                assert ran.stdout.strip() or "-X DELETE" in code, code
    assert "max_num_seqs: 8" in models_file.read_text()
    assert "# other names that requests may use" in models_file.read_text()


def test_every_exit_status_is_listed() -> None:
    listed = re.findall(r"^\| (\d+) \|", (ROOT / "docs" / "cli.md").read_text(), re.MULTILINE)
    assert [int(status) for status in listed] == list(ExitCode)


def test_the_examples_of_catalogs_are_catalogs(tmp_path: Path) -> None:
    engines: dict[str, str | None] = {}
    for example in [*blocks("yaml"), *blocks("yaml", "docs/engines.md")]:
        catalog = tmp_path / "models.yaml"
        catalog.write_text(example)
        models = load_catalog(catalog, kinds=engine_kinds()).models
        engines |= {name: entry.engine for name, entry in models.items()}
    expected = {"large": "vllm", "on-cpu": "vllm", "gguf": "llama", "gguf-python": "command", "qwen": "llama"}
    assert expected.items() <= engines.items()


def test_it_is_short() -> None:
    """It has what newcomers need; reference is in docs/."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_two_commands_are_make_targets() -> None:
    plain = "\n".join(blocks(""))
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make ([a-z-]+)", plain, re.MULTILINE)
    assert {"serve", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_make_target_that_a_page_names_exists() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    named = {name for page in pages for name in re.findall(r"`make ([a-z-]+)", page.read_text())}
    assert len(named) > 10
    assert named <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
