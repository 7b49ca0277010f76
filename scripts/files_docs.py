"""Writes docs/files.md, a line for every source file: the first sentence of its docstring.

scripts/files_docs.py            writes it
scripts/files_docs.py --check    exit code 1 where it is old
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_PAGE = _ROOT / "docs" / "files.md"
_FOLDERS = ("src/memfit", "benchmarks", "scripts")
_HEAD = """# Every file, by room

Generated from the files' first sentences by `scripts/files_docs.py`. The README says what the rooms are.
"""
_COMMENT = re.compile(r"#(?:!.*\n#)?\s*(.+)|//\s*(.+)")


def _sentence(path: Path) -> str:
    """What a file says of itself first; a data file says nothing."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        said = ast.get_docstring(ast.parse(text)) or ""
    else:
        match = _COMMENT.match(text)
        said = (match[1] or match[2]) if match else ""
    joined = " ".join(said.split("\n\n")[0].split())
    return re.split(r"(?<=[.?!])\s(?=[A-Z`])", joined)[0]


def _page() -> Iterator[str]:
    yield _HEAD
    for top in _FOLDERS:
        folders = [_ROOT / top, *sorted(path for path in (_ROOT / top).rglob("*") if path.is_dir())]
        for folder in folders:
            files = sorted(
                path
                for path in folder.iterdir()
                if path.suffix in (".py", ".cmake", ".h", "") and path.is_file()
            )
            if not files:
                continue
            yield f"\n## {folder.relative_to(_ROOT)}/\n"
            init = folder / "__init__.py"
            if init in files and folder != _ROOT / "src/memfit":
                files.remove(init)
                yield f"{_sentence(init)}\n"
            yield "| file | what it is |\n| --- | --- |"
            yield from (f"| {path.name} | {_sentence(path)} |" for path in files)


def main() -> int:
    page = "\n".join(_page()).replace("\n\n\n", "\n\n") + "\n"
    if "--check" not in sys.argv:
        _PAGE.write_text(page, encoding="utf-8")
    elif not _PAGE.is_file() or _PAGE.read_text(encoding="utf-8") != page:
        print("docs/files.md is old; run scripts/files_docs.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
