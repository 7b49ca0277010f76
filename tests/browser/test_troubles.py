"""The page where something is in the way: keys, broken streams, other tabs, long prompts, no storage."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.engine

_HOSTILE = """<script>document.title = 'taken'</script><img src=x onerror="document.title='taken'">

![a picture](https://outside.example/pixel.png) [bad](javascript:alert(1)) <iframe src="https://outside.example">

<style>@import url(https://outside.example/a.css)</style>

[good](https://example.org/)
"""
_DENIED = """
for (const name of ["localStorage", "sessionStorage"])
  Object.defineProperty(window, name, {get() { throw new DOMException("denied", "SecurityError"); }});
IDBFactory.prototype.open = () => { throw new DOMException("denied", "SecurityError"); };
"""
_FULL = """
IDBObjectStore.prototype.put = () => { throw new DOMException("full", "QuotaExceededError"); };
"""


def _say(page: Any, text: str) -> None:
    page.fill(".composer textarea", text)
    page.keyboard.press("Enter")


def _answered(page: Any, number: int) -> None:
    """Until so many messages are complete."""
    page.wait_for_function(
        "count => document.querySelectorAll('.message .tools').length === count", arg=number, timeout=60_000
    )


def _expected(complaints: list[str], *words: str) -> None:
    """These complaints are what the test is about."""
    assert any(word in one for one in complaints for word in words), complaints
    complaints[:] = [one for one in complaints if not any(word in one for word in words)]


def _answer_by(page: Any, pieces: Sequence[str], *, ends: bool = True, kind: str = "content") -> None:
    """Every chat is answered by these pieces."""
    events = [{"choices": [{"index": 0, "delta": {kind: piece}}]} for piece in pieces]
    body = "".join(f"data: {json.dumps(one)}\n\n" for one in events) + ("data: [DONE]\n\n" if ends else "")
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(content_type="text/event-stream", body=body.encode()),
    )


@pytest.mark.parametrize("kind", ["content", "reasoning_content"])
def test_a_stream_of_html_stays_text(page: Any, kind: str) -> None:
    _answer_by(page, [_HOSTILE[at : at + 3] for at in range(0, len(_HOSTILE), 3)], kind=kind)
    _say(page, "Write.")
    _answered(page, 2)
    assert page.title() == "Chat · memfit"
    answer = page.locator(".message.assistant")
    assert "<script>" in answer.text_content() and "<iframe" in answer.text_content()
    assert answer.locator("img, script, iframe, style").count() == 0
    assert answer.locator("a").evaluate_all("all => all.map(one => one.href)") == ["https://example.org/"]


def test_a_stream_that_breaks_off_shows_what_came(page: Any) -> None:
    _answer_by(page, ["Half of", " an answer"], ends=False)
    _say(page, "Write.")
    _answered(page, 2)
    assert page.inner_text(".markdown") == "Half of an answer"
    assert "broke off" in page.inner_text(".message.assistant [role=alert]")
    page.reload()
    _answered(page, 2)
    assert "broke off" in page.inner_text(".message.assistant [role=alert]")


def test_a_server_that_is_gone_is_told(page: Any, complaints: list[str]) -> None:
    page.route("**/v1/chat/completions", lambda route: route.abort())
    _say(page, "Write.")
    page.wait_for_selector(".message.assistant [role=alert]")
    _expected(complaints, "ERR_FAILED")
    page.wait_for_selector(".banner", state="detached", timeout=10_000)  # the next question is answered


def test_a_key_is_asked_for_until_it_is_right(
    context: Any, complaints: list[str], served: Callable[..., AbstractContextManager[str]]
) -> None:
    with served("--api-key", "right") as address:
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector("dialog[open] input:focus")
        assert page.locator("dialog .error").count() == 0
        page.keyboard.press("Escape")
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("dialog[open] .error")
        page.fill("dialog input", "right")
        keys: list[str | None] = []
        page.on("request", lambda one: "/page/" in one.url or keys.append(one.headers.get("authorization")))
        page.keyboard.press("Enter")
        page.wait_for_selector("dialog", state="detached")
        page.wait_for_selector("text=Say something to")
        _say(page, "Say one word.")
        _answered(page, 2)
        assert page.locator(".message .error").count() == 0
        assert set(keys) == {"Bearer right"}
        stored = "() => [sessionStorage.getItem('memfit-key'), JSON.stringify(localStorage)]"
        assert page.evaluate(stored) == ["right", "{}"]
        page.reload()
        _answered(page, 2)
        assert page.locator("dialog").count() == 0
        other = context.new_page()
        other.goto(address)
        other.wait_for_selector("dialog[open]")  # it is kept for one tab only
        page.close()
        other.close()
    _expected(complaints, "401")


def test_two_tabs_lose_nothing_of_each_other(context: Any, page: Any, address: str) -> None:
    _answer_by(page, ["first"])
    _say(page, "One.")
    _answered(page, 2)
    other = context.new_page()
    _answer_by(other, ["second"])
    other.goto(address)
    _answered(other, 2)
    _say(other, "Two.")
    _answered(other, 4)
    page.click("[aria-label='Answer again'] >> nth=0")  # without having looked at what the other has added
    page.wait_for_selector("text=2 / 2")
    other.reload()
    other.wait_for_selector(".versions")
    kept = """() => new Promise((resolve) => {
      indexedDB.open("memfit", 1).onsuccess = ({target}) => {
        target.result.transaction("conversations").objectStore("conversations").getAll().onsuccess =
          ({target: {result}}) =>
            resolve(result.map((one) => Object.values(one.messages).map((each) => each.content)));
      };
    })"""
    (contents,) = other.evaluate(kept)
    assert sorted(contents) == ["One.", "Two.", "first", "first", "second"]
    _answer_by(page, ["third"])
    page.click("text=New conversation")
    _say(page, "Three.")
    _answered(page, 2)
    other.wait_for_selector(".list li >> text=Three.")  # at once, without being loaded anew
    other.once("dialog", lambda dialog: dialog.accept())
    other.click(".list li:has-text('Three.') [title=Delete]")
    page.wait_for_selector(".list li >> text=Three.", state="detached")


def test_branches_come_back_from_a_file(page: Any, tmp_path: Path) -> None:
    _answer_by(page, ["an answer"])
    _say(page, "One.")
    _answered(page, 2)
    page.click("[aria-label='Answer again']")
    page.wait_for_selector("text=2 / 2")
    _say(page, "Two.")
    _answered(page, 4)
    page.click("[aria-label='Earlier version']")
    _answered(page, 2)

    def export() -> Any:
        with page.expect_download() as download:
            page.click("button:has-text('Export')")
        download.value.save_as(tmp_path / "file.json")
        (found,) = json.loads((tmp_path / "file.json").read_text(encoding="utf-8"))["conversations"]
        del found["changed"]
        return found

    before = export()
    assert len(before["messages"]) == 5
    page.once("dialog", lambda dialog: dialog.accept())
    page.click(".list [title=Delete]")
    page.wait_for_selector(".empty")
    page.set_input_files(".list input[type=file]", tmp_path / "file.json")
    page.click(".list .title")
    _answered(page, 2)
    assert export() == before
    assert page.inner_text(".message.assistant .versions") == "1 / 2"
    page.click("[aria-label='Later version']")
    _answered(page, 4)


def test_three_megabytes_are_pasted_without_freezing(page: Any, complaints: list[str]) -> None:
    text = "A line of a very long prompt that somebody has pasted.\n" * 55_000
    assert len(text) > 3_000_000
    page.evaluate(
        """text => {
          const box = document.querySelector(".composer textarea");
          box.focus();
          box.value = text;
        }""",
        text,
    )
    page.keyboard.press("Enter")
    page.wait_for_selector(".message.assistant [role=alert]", timeout=60_000)
    assert "--ctx" in page.inner_text(".message.assistant [role=alert]")
    began = page.evaluate("() => performance.now()")
    page.click("nav a[href='#memory']")
    page.wait_for_selector(".tier")
    page.click("nav a[href='#chat']")
    _answered(page, 2)
    assert page.evaluate("began => performance.now() - began", began) < 3000
    _expected(complaints, "400")


def test_without_storage_one_can_still_chat(context: Any, address: str) -> None:
    context.add_init_script(_DENIED)
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector(".list [role=alert]")
    _answer_by(page, ["an answer"])
    _say(page, "One.")
    _answered(page, 2)
    assert page.inner_text(".markdown") == "an answer"
    page.select_option("header select", "ar")
    page.wait_for_selector("html[lang=ar]")


def test_a_full_storage_is_told_and_conversations_can_be_exported(page: Any, tmp_path: Path) -> None:
    page.evaluate(f"() => {{{_FULL}}}")
    _answer_by(page, ["an answer"])
    _say(page, "One.")
    _answered(page, 2)
    assert "keeps no conversations" in page.inner_text(".list [role=alert]")
    with page.expect_download() as download:
        page.click("button:has-text('Export')")
    download.value.save_as(tmp_path / "file.json")
    assert "an answer" in (tmp_path / "file.json").read_text(encoding="utf-8")


def test_ten_tabs_stay_awake(context: Any, address: str) -> None:
    pages = [context.new_page() for _ in range(10)]
    for page in pages:
        page.goto(address)
        page.wait_for_selector(".composer")
    for page in pages:
        page.click("nav a[href='#activity']")
        page.wait_for_selector(".chart canvas")
    for page in pages:
        page.click("nav a[href='#memory']")
        page.wait_for_selector(".tier")
