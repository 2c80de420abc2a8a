"""Finds the words that docs/glossary.md keeps out: `python -m docs.words [ROOT]`; 1 if there are any."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
_PAGE = "docs/glossary.md"
_SUFFIXES = (".py", ".md", ".html", ".toml", ".yaml", ".yml", ".example")
_NOT_OURS = ("models", "state", "logs", "build")  # and whatever begins with a dot
# History says what was; the page itself lists the words; the demo model was trained on its wordings.
_EXEMPT = (
    "CHANGELOG.md",
    "docs/log.md",
    "docs/decisions/",
    _PAGE,
    "training/",
    "docs/api.md",
    "tests/test_words.py",
)


class Finding(NamedTuple):
    """A word at a place. `line` counts from 1."""

    path: str
    line: int
    word: str
    instead: str


def old_words(page: str) -> dict[str, str]:
    """The words of the glossary's last table, each with what to write instead."""
    _, _, table = page.partition("## Words that stay out")
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", table, re.MULTILINE)
    return {word: instead for words, instead in rows[1:] for word in words.split(", ")}


def find(root: Path) -> Iterator[Finding]:
    """All of them below a folder."""
    words = old_words((root / _PAGE).read_text(encoding="utf-8"))
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)")
    for path in sorted(_files(root)):
        name = path.relative_to(root).as_posix()
        if not name.startswith(_EXEMPT):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                yield from (Finding(name, number, old[0], words[old[0]]) for old in pattern.finditer(line))


def _files(folder: Path, skipped: Sequence[str] = _NOT_OURS) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name.startswith(".") or path.name in skipped:
            continue
        if path.is_dir():
            yield from _files(path, skipped=())
        elif path.suffix in _SUFFIXES:
            yield path


def main(argv: Sequence[str] = ()) -> int:
    """Print each finding; 1 if there is one."""
    findings = list(find(Path(argv[0]) if argv else ROOT))
    for found in findings:
        sys.stdout.write(
            f"{found.path}:{found.line}: {found.word!r}: write {found.instead} (docs/glossary.md)\n"
        )
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
