"""What pyproject.toml can't say: the repository's packages become `berth.home.…` in the wheel."""

from __future__ import annotations

from pathlib import Path

from setuptools import find_packages, setup

OWN = [
    *("api*", "cli*", "composition*", "configs*", "engine*", "host_limits*"),
    *("instance_manager*", "log_output*"),
]
DATA = [
    "LICENSE",
    "env.example",
    "configs/*.json",
    "configs/models.example.yaml",
    "engine/models/native/*.cpp",
    "engine/models/native/*.h",
    "instance_manager/backends/*.json",
    "instance_manager/backends/llama_cpp/*.json",
    "instance_manager/backends/llama_cpp/*.txt",
    *(str(path) for path in Path("models/berth-demo").rglob("*") if path.is_file()),
]

setup(
    packages=["berth", "berth.home", *(f"berth.home.{name}" for name in find_packages(".", include=OWN))],
    package_dir={"berth": "package/berth", "berth.home": "."},
    package_data={"berth.home": DATA, "berth": ["py.typed"]},
)
