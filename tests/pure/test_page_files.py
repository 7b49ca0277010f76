"""The page's files: texts in every language, what is vendored, how they are sent."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from pathlib import Path

import pytest
from asgi_calls import Client
from starlette.applications import Starlette

from memfit.server import page_paths
from memfit.server.page_paths import page_routes

_PAGE = Path(page_paths.__file__).parent / "page"
_SCRIPTS = sorted(_PAGE.glob("*.js"))
_WORDS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in _PAGE.glob("words/*.json")}
_PLACES = re.compile(r"\{\w+\}")


def test_every_language_has_every_text_with_the_same_places() -> None:
    assert set(_WORDS) == {"ar", "en"}
    for language, texts in _WORDS.items():
        assert list(texts) == sorted(_WORDS["en"]), language
        for key, text in texts.items():
            assert text.strip(), (language, key)
            assert sorted(_PLACES.findall(text)) == sorted(_PLACES.findall(_WORDS["en"][key])), (
                language,
                key,
            )


def test_every_text_that_is_asked_for_is_there_and_none_is_left_over() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in _SCRIPTS)
    asked = set(re.findall(r'\bt\(\s*"([^"]+)"', source))
    families = {pattern.partition("$")[0] for pattern in re.findall(r"\bt\(`([^`]+)`", source)}
    chosen = set(re.findall(r'\? "([\w.-]+)" : "([\w.-]+)"', source))
    asked |= {key for pair in chosen for key in pair if key in _WORDS["en"]}
    assert asked <= set(_WORDS["en"]), asked - set(_WORDS["en"])
    left = {key for key in _WORDS["en"] if key not in asked and not key.startswith(tuple(families))}
    assert not left


def test_nothing_in_the_pages_own_files_makes_html_of_text() -> None:
    for path in _SCRIPTS:
        text = path.read_text(encoding="utf-8")
        for wrong in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "http://"):
            assert wrong not in text, (path.name, wrong)


@pytest.mark.parametrize("accepts", ["text/html,*/*", "*/*"])
def test_browsers_get_the_page_and_programs_a_greeting(accepts: str) -> None:
    async def ask() -> None:
        app = Starlette(routes=page_routes())
        front = await Client("GET", "/", headers={"accept": accepts}).through(app)
        assert front.status == 200
        if "html" in accepts:
            assert front.body.startswith(b"<!doctype html>")
            assert "trusted-types 'none'" in front.headers["content-security-policy"]
        else:
            assert front.body == b"memfit is running"

    asyncio.run(ask())


def test_what_the_first_room_imports_is_asked_for_at_once() -> None:
    front = (_PAGE / "index.html").read_text(encoding="utf-8")
    asked = set(re.findall(r'(?:modulepreload" href|script type="module" src)="page/([^"]+)"', front))
    needed, found = {"app.js"}, set[str]()
    while left := needed - found:
        name = left.pop()
        found.add(name)
        if not name.startswith("vendor/"):
            source = (_PAGE / name).read_text(encoding="utf-8")
            needed |= set(re.findall(r'^(?:import|\}).* from "\./([^"]+)";', source, re.MULTILINE))
    assert asked == found


def test_files_are_compressed_and_small_together() -> None:
    files = [path for path in _PAGE.rglob("*") if path.is_file() and path.suffix not in (".txt",)]
    sizes = {path.name: len(gzip.compress(path.read_bytes(), 6)) for path in files}
    arabic = sizes.pop("ar.json")
    assert sum(sizes.values()) <= 130_000 - arabic, sizes
    later = ("extras.js", "plan.js", "memory.js", "activity.js", "models.js")
    assert sum(size for name, size in sizes.items() if name not in later) <= 60_000, sizes
