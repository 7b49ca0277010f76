"""The page by its keys alone: every room can be reached and used, and what has the focus can be seen."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.engine

_MOST_STOPS = 80
# What has the focus: its name, and whether it can be seen, by an outline inside the window.
_FOCUSED = """() => {
  const one = document.activeElement;
  if (!one || one === document.body) return null;
  const seen = one.matches(".hidden") ? one.parentElement : one;
  const style = getComputedStyle(seen);
  const box = seen.getBoundingClientRect();
  const isInside = box.width > 0 && box.height > 0 && box.bottom > 0 && box.top < innerHeight;
  const name = one.ariaLabel ?? one.labels?.[0]?.textContent ?? one.textContent;
  return {
    name: name.trim().replace(/\\s+/g, " "), tag: one.localName,
    isSeen: isInside && style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
  };
}"""


def _stop(page: Any, *, back: bool = False) -> dict[str, Any] | None:
    """The next thing that Tab comes to; None past the last."""
    page.keyboard.press("Shift+Tab" if back else "Tab")
    found = page.evaluate(_FOCUSED)
    assert found is None or found["isSeen"], found
    return dict(found) if found else None


def _tab_to(page: Any, name: str, *, back: bool = False) -> None:
    """From where it is, until what has this name has the focus."""
    seen = []
    for _ in range(_MOST_STOPS):
        found = _stop(page, back=back)
        seen.append(found and found["name"])
        if found and found["name"].startswith(name):
            return
    raise AssertionError(f"no {name!r} in {seen}")


def _walk(page: Any) -> list[str]:
    """The names of all that Tab comes to, from the beginning."""
    page.evaluate("() => document.activeElement.blur()")
    names = []
    for _ in range(_MOST_STOPS):
        found = _stop(page)
        if found is None:
            break
        names.append(found["name"])
    return names


def test_every_room_is_walked_through_by_keys(page: Any) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate(_FOCUSED)["name"] == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("() => document.activeElement.id") == "main"
    expected = {
        "Memory": {"Why this plan"},
        "Plan": {"Context", "Sequences at once", "Type of the KV cache"},
        "Activity": {"Last answers"},
        "Chat": {"New conversation", "Import", "System prompt and sampling", "Message", "Send"},
    }
    _tab_to(page, "Message")
    page.keyboard.type("Say one word.")
    page.keyboard.press("Enter")
    page.wait_for_selector(".message.assistant .tools", timeout=60_000)
    for room, wanted in expected.items():
        page.evaluate("() => document.activeElement.blur()")
        _tab_to(page, room)
        page.keyboard.press("Enter")
        page.wait_for_selector(f"nav a[aria-current=page] >> text={room}")
        page.wait_for_selector(".composer, .tier, tbody")
        names = _walk(page)
        for one in wanted:
            assert any(name.startswith(one) for name in names), (one, names)


def test_a_chat_is_led_by_keys(page: Any) -> None:
    _tab_to(page, "System prompt and sampling")
    page.keyboard.press("Enter")
    _tab_to(page, "System prompt")
    page.keyboard.type("You are a poet.")
    _tab_to(page, "Message")
    page.keyboard.type("Write a very long story about the sea.")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("And its people.")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('.markdown')?.textContent", timeout=60_000)
    _tab_to(page, "Stop")
    page.keyboard.press("Enter")
    page.wait_for_selector(".message.assistant .tools", timeout=60_000)
    assert "people" in page.inner_text(".message.user .said")
    assert page.evaluate(_FOCUSED)["name"] == "Send", "the focus is not lost with what had it"
    _tab_to(page, "Edit", back=True)
    page.keyboard.press("Enter")
    page.wait_for_selector(".message.user textarea:focus")
    _tab_to(page, "Cancel")
    page.keyboard.press("Enter")
    page.wait_for_selector(".message.user textarea", state="detached")


def test_the_language_is_chosen_by_keys(page: Any) -> None:
    _tab_to(page, "Language")
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("html[lang=ar][dir=rtl]")
    page.keyboard.press("ArrowUp")
    page.wait_for_selector("html[lang=en][dir=ltr]")
    _tab_to(page, "Dark")
    page.keyboard.press("Enter")
    page.wait_for_selector("html[data-theme=dark]")


def test_a_plan_is_priced_and_applied_by_keys(page: Any) -> None:
    _tab_to(page, "Plan")
    page.keyboard.press("Enter")
    page.wait_for_selector(".sliders")
    _tab_to(page, "Context")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("button.primary:enabled", timeout=60_000)
    _tab_to(page, "Load by this plan")
    page.once("dialog", lambda dialog: dialog.accept())
    with page.expect_response("**/apply", timeout=60_000) as applied:
        page.keyboard.press("Enter")
    assert applied.value.json()["context"] == 1536


def test_nothing_moves_for_who_wants_no_motion(page: Any) -> None:
    page.click("nav a[href='#memory']")
    moving = "() => getComputedStyle(document.querySelector('.part')).transitionProperty"
    page.wait_for_selector(".part")
    assert page.evaluate(moving) == "none"
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(moving) == "inline-size"
