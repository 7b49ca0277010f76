"""A plan's page in a real browser, as somebody opens it who was sent the file; and its picture."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memfit.cli.plan_page import plan_page
from memfit.cli.plan_picture import find_browser, take_picture
from memfit.units import GIB, MIB

sys.path.append(str(Path(__file__).resolve().parents[1] / "pure"))
from fakes import make_plan_value, make_spec, make_tier

_LONG = "a-name-without-a-place-to-break" * 20


def _pages() -> dict[str, str]:
    """One that fits, one that does not, and one of a stranger who means no good."""
    gpu = make_tier(600 * MIB, 200 * MIB, 31 * MIB, 22 * MIB, GIB, name="gpu0")
    hostile = make_spec(name=f"<script>document.title='taken'</script>{_LONG}\u202e", architecture=_LONG)
    full = make_tier(GIB, MIB, 0, 512 * MIB, GIB, name=_LONG)
    refused = make_plan_value(hostile, devices=(full,))
    return {
        "fits": plan_page(make_plan_value(devices=(gpu,))),
        "short": plan_page(make_plan_value(tier=make_tier(GIB, 0, 0, MIB, GIB))),
        "hostile": plan_page(
            replace(refused, why=(_LONG, "<img src=x onerror=alert(1)>"), suggestions=(_LONG,))
        ),
    }


@pytest.fixture(params=["fits", "short", "hostile"])
def page(request: pytest.FixtureRequest, browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Opened from a file; whatever it complains of, or asks for beside itself, fails the test."""
    file = tmp_path / "plan.html"
    file.write_text(_pages()[request.param], encoding="utf-8")
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    found = context.new_page()
    complaints: list[str] = []
    found.on("console", lambda said: complaints.append(said.text))
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.on("request", lambda asked: complaints.append(asked.url) if asked.url != file.as_uri() else None)
    found.goto(file.as_uri())
    yield found
    assert "memfit plan" in found.title()
    context.close()
    assert not complaints


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_plans_page_keeps_nobody_out(page: Any, theme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.emulate_media(color_scheme=theme)
    ground = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(247, 248, 248)", "dark": "rgb(16, 22, 23)"}[theme]
    found = axe.run(page)
    assert found.violations_count == 0, found.generate_report()


def test_a_plans_page_has_no_sideways_scrolling_on_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 740})
    assert page.evaluate("() => document.scrollingElement.scrollWidth <= innerWidth")


def test_its_bars_are_as_long_as_the_bytes(page: Any) -> None:
    """Between the strokes of half a pixel at either side."""
    for bar in page.query_selector_all(".bar"):
        whole = bar.bounding_box()["width"]
        for part in bar.query_selector_all("rect[x]"):
            share = float(part.get_attribute("width")) / 100
            assert part.bounding_box()["width"] == pytest.approx(whole * share, abs=1.5)


def test_the_picture_shows_the_page_from_its_head_to_its_foot(tmp_path: Path, browser: Any) -> None:
    """Two pixels for each of the page's; the map's colours are in it, and the foot is not cut off."""
    html = _pages()["fits"]
    picture = take_picture(html, find_browser(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "plan.png").write_bytes(picture)
    page = browser.new_page(viewport={"width": 800, "height": 600}, color_scheme="light")
    (tmp_path / "plan.html").write_text(html, encoding="utf-8")
    page.goto((tmp_path / "plan.html").as_uri())
    height = page.evaluate("() => document.querySelector('footer').getBoundingClientRect().bottom")
    page.close()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    size = [int.from_bytes(picture[at : at + 4], "big") for at in (16, 20)]
    assert size == [1600, pytest.approx(2 * height, abs=2)]
    pixels = pytest.importorskip("matplotlib.image").imread(tmp_path / "plan.png")[..., :3]
    for colour in ((0x0F, 0x76, 0x6E), (0xB4, 0x53, 0x09), (0x92, 0x40, 0x0E)):  # weights, KV cache, amber
        near = abs(pixels * 255 - colour).max(axis=-1) < 2
        assert near.sum() > 1000
