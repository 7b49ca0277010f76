"""Writes src/memfit/server/page/vendor/ again: the libraries of the page, each one file, with their licences.

Needs npm. What is taken is pinned with hashes in scripts/page/package-lock.json; to take newer ones, change
package.json there and run `npm install --package-lock-only` beside it.

    python scripts/vendor_page.py
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from xml.etree import ElementTree

_ROOT = Path(__file__).resolve().parent.parent
_SOURCE = _ROOT / "scripts" / "page"
_TARGET = _ROOT / "src" / "memfit" / "server" / "page" / "vendor"
_BUNDLES = ("core", "extras")
_ICONS = (
    *("activity", "check", "chevron-left", "chevron-right", "circle-stop", "copy", "download", "gauge"),
    *("memory-stick", "message-square", "moon", "package", "pencil", "plus", "refresh-cw", "send-horizontal"),
    *("sun", "trash-2", "upload", "x"),
)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="memfit-page-") as folder:
        work = Path(folder)
        for path in _SOURCE.iterdir():
            shutil.copy(path, work)
        subprocess.run(["npm", "ci", "--silent", "--no-audit", "--no-fund"], cwd=work, check=True)
        modules = work / "node_modules"
        icons = json.dumps(_icons(modules / "lucide-static" / "icons"))
        (work / "icons.json").write_text(icons, encoding="utf-8")  # core.js imports it
        shutil.rmtree(_TARGET, ignore_errors=True)
        _TARGET.mkdir(parents=True)
        for name in _BUNDLES:
            command = [modules / ".bin" / "esbuild", f"{name}.js", "--bundle", "--format=esm", "--minify"]
            subprocess.run(
                [*command, "--legal-comments=none", f"--outfile={_TARGET / name}.js", "--log-level=warning"],
                cwd=work,
                check=True,
            )
        (_TARGET / "LICENSES.txt").write_text(_licences(modules), encoding="utf-8")


def _icons(folder: Path) -> dict[str, list[tuple[str, dict[str, str]]]]:
    """Each icon's shapes: tag and attributes."""
    found = {}
    for name in _ICONS:
        shapes = ElementTree.parse(folder / f"{name}.svg").getroot()
        found[name] = [(one.tag.rpartition("}")[2], dict(one.attrib)) for one in shapes]
    return found


def _licences(modules: Path) -> str:
    """Of all that is in the files here."""
    wanted = json.loads((_SOURCE / "package.json").read_text(encoding="utf-8"))["dependencies"]
    texts = []
    for name in sorted({*wanted, "@preact/signals-core"}):
        folder = modules / name
        version = json.loads((folder / "package.json").read_text(encoding="utf-8"))["version"]
        (licence,) = [path for path in folder.iterdir() if path.name.upper().startswith("LICENSE")]
        texts.append(f"{name} {version}\n\n{licence.read_text(encoding='utf-8').strip()}\n")
    return f"\n{'-' * 80}\n\n".join(texts)


if __name__ == "__main__":
    main()
