"""The page in a real browser, on a real server: chats, the plan, languages, what a model may not do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rooms import enter

pytestmark = pytest.mark.engine

_ROOMS = ("chat", "models", "memory", "plan", "activity")
_HOSTILE = """# <script>document.title = 'taken'</script>

<img src=x onerror="document.title='taken'"> ![a picture](https://outside.example/pixel.png)

[good](https://example.org/) [bad](javascript:document.title='taken') <a href="https://example.org">html</a>

- one
- [ ] two

| a | b |
| --- | --- |
| 1 | `<b>` |

```python
def f(x):
    return "<b>" + x
```
"""


def _say(page: Any, text: str) -> None:
    page.fill(".composer textarea", text)
    page.keyboard.press("Enter")


def _answered(page: Any, number: int) -> None:
    """Until so many messages are complete."""
    page.wait_for_function(
        "count => document.querySelectorAll('.message .tools').length === count", arg=number, timeout=60_000
    )


def test_a_chat_streams_and_can_be_stopped_repeated_and_branched(page: Any) -> None:
    _say(page, "Write a very long story about the sea.")
    page.wait_for_function(
        "() => document.querySelector('.markdown')?.textContent.length > 40", timeout=60_000
    )
    page.click(".stop")
    _answered(page, 2)
    assert page.inner_text(".markdown") and not page.query_selector(".error")
    page.click("[aria-label='Answer again']")
    page.wait_for_selector(".stop")
    page.click(".stop")
    _answered(page, 2)
    assert page.inner_text(".message.assistant .versions") == "2 / 2"
    page.click(".message.assistant [aria-label='Earlier version']")
    assert page.inner_text(".message.assistant .versions") == "1 / 2"
    page.click(".message.user [aria-label='Edit']")
    page.fill(".message.user textarea", "Say one word.")
    page.click(".message.user .primary")
    page.wait_for_selector(".message.user .versions")
    _answered(page, 2)
    assert page.inner_text(".message.user .versions") == "2 / 2"


def test_conversations_are_kept_exported_and_imported(page: Any, tmp_path: Path) -> None:
    _say(page, "Say one word.")
    _answered(page, 2)
    text = page.inner_text(".markdown")
    page.reload()
    _answered(page, 2)
    assert page.inner_text(".markdown") == text
    with page.expect_download() as download:
        page.click("text=Export")
    file = tmp_path / "conversations.json"
    download.value.save_as(file)
    page.once("dialog", lambda dialog: dialog.accept())
    page.click(".list [title=Delete]")
    page.wait_for_selector(".empty")
    assert page.locator(".list li").count() == 0
    page.set_input_files(".list input[type=file]", file)
    page.click(".list .title")
    _answered(page, 2)
    assert page.inner_text(".markdown") == text
    file.write_text("[]")
    page.set_input_files(".list input[type=file]", file)
    page.wait_for_selector(".error")
    assert page.locator(".list li").count() == 1


def _told(page: Any, text: str) -> None:
    """A conversation whose answer is this text."""
    chat = {
        "id": "c", "title": "told", "system": "", "sampling": {}, "leaf": "b", "changed": 1,
        "messages": {
            "a": {"id": "a", "parent": None, "role": "user", "content": "Tell."},
            "b": {"id": "b", "parent": "a", "role": "assistant", "content": text},
        },
    }  # fmt: skip
    document = json.dumps({"format": "memfit-conversations-1", "conversations": [chat]})
    file = {"name": "told.json", "mimeType": "application/json", "buffer": document.encode()}
    page.set_input_files(".list input[type=file]", file)
    page.click(".list .title >> text=told")
    _answered(page, 2)


def test_what_a_model_writes_is_text_and_fetches_nothing(page: Any) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    _told(page, _HOSTILE)
    page.wait_for_selector(".code-keyword")
    assert page.title() == "Chat · memfit"
    assert page.locator(".markdown img, .markdown script").count() == 0
    links = page.locator(".markdown a")
    assert [links.nth(index).get_attribute("href") for index in range(links.count())] == [
        "https://example.org/"
    ]
    assert "<img src=x" in page.inner_text(".markdown") and "a picture" in page.inner_text(".markdown")
    assert not [url for url in asked if "127.0.0.1" not in url]


def test_the_memory_room_shows_the_plan_to_the_byte(page: Any) -> None:
    enter(page, "memory")
    page.wait_for_selector(".tier")
    plan = page.evaluate("() => fetch('plan').then((one) => one.json())")
    (ram, *_) = plan["tiers"]
    parts = ("weights", "kv_cache", "compute", "overhead")
    whole = page.evaluate("() => document.querySelector('.bar').clientWidth")
    for part in parts:
        width = page.evaluate(f"() => document.querySelector('.part.{part}').getBoundingClientRect().width")
        assert width == pytest.approx(whole * ram[f"{part}_bytes"] / ram["budget_bytes"], abs=1.5)


def test_the_memory_room_shows_what_is_in_use_and_what_others_hold(page: Any) -> None:
    _say(page, "Say one word.")
    _answered(page, 2)
    enter(page, "memory")
    page.wait_for_selector(".kv_cache .used")
    plan = page.evaluate("() => fetch('plan').then((one) => one.json())")

    def share(part: str, whole: str) -> float:
        widths = [
            page.evaluate(f"() => document.querySelector('{one}').getBoundingClientRect().width")
            for one in (part, whole)
        ]
        return float(widths[0] / widths[1])

    assert 0 < plan["cells_in_use"] < plan["context"]
    used = plan["cells_in_use"] / plan["context"]
    assert share(".kv_cache .used", ".part.kv_cache") == pytest.approx(used, abs=0.05)
    (ram,) = plan["measured"]["tiers"]
    others = ram["others_bytes"] / ram["capacity_bytes"]
    assert share(".part.others", ".bar.thin") == pytest.approx(others, abs=0.1)  # they move
    held = ram["held_bytes"] / ram["capacity_bytes"]
    assert share(".part.held", ".bar.thin") == pytest.approx(held, abs=0.02)


def test_a_moved_slider_is_priced_as_plan_prices_it(page: Any) -> None:
    enter(page, "plan")
    with page.expect_response(
        lambda answer: answer.url.endswith("/plan") and answer.request.method == "POST"
    ) as found:
        page.focus("input[type=range] >> nth=1")
        page.keyboard.press("ArrowRight")
    priced = found.value.json()
    assert priced["context"] == 3072
    enter(page, "memory")
    page.wait_for_selector(".part.pricing")  # the process stays, as the budget has room for it
    enter(page, "plan")
    page.wait_for_selector("[aria-busy=false] .tier")
    width = page.evaluate("() => document.querySelector('.part.kv_cache').getBoundingClientRect().width")
    whole = page.evaluate("() => document.querySelector('.bar').clientWidth")
    (ram, *_) = priced["tiers"]
    assert width == pytest.approx(whole * ram["kv_cache_bytes"] / ram["budget_bytes"], abs=1.5)


def test_a_plan_is_applied_and_conversations_are_kept(page: Any) -> None:
    _say(page, "Say one word.")
    _answered(page, 2)
    text = page.inner_text(".markdown")
    enter(page, "plan")
    page.focus("input[type=range] >> nth=1")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("button.primary:enabled")
    page.once("dialog", lambda dialog: dialog.accept())
    with page.expect_response("**/apply") as applied:
        page.click("button.primary")
    assert applied.value.json()["context"] == 1536
    enter(page, "memory")
    page.wait_for_selector("text=1536")
    enter(page, "chat")
    assert page.inner_text(".markdown") == text
    _say(page, "Say another word.")
    _answered(page, 4)


def test_answers_are_listed_while_speeds_are_drawn(page: Any) -> None:
    _say(page, "Say one word.")
    _answered(page, 2)
    enter(page, "activity")
    page.wait_for_selector(".chart canvas")
    newest = page.evaluate("() => fetch('activity').then((one) => one.json())")["recent"][0]
    assert page.inner_text("tbody tr:first-child td:nth-child(4)") == str(newest["completion_tokens"])


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("language", ["en", "ar"])
def test_no_room_keeps_anybody_out(page: Any, language: str, theme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.emulate_media(color_scheme=theme)
    page.select_option("header select", language)
    page.wait_for_selector(f"html[lang={language}]")
    assert page.get_attribute("html", "dir") == ("rtl" if language == "ar" else "ltr")
    _told(page, _HOSTILE)
    for room in _ROOMS:
        enter(page, room)
        page.wait_for_selector(".chat, .models, .tier, .chart canvas")
        found = axe.run(page)
        assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("language", ["en", "ar"])
def test_a_phone_has_no_sideways_scrolling(page: Any, language: str) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.select_option("header select", language)
    _told(page, _HOSTILE)
    for room in _ROOMS:
        enter(page, room)
        page.wait_for_selector(".chat, .models, .tier, .chart canvas")
        assert page.evaluate("() => document.scrollingElement.scrollWidth <= innerWidth"), room
        assert page.evaluate("() => document.querySelector('main').scrollWidth <= innerWidth"), room
