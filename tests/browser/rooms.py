"""How tests walk through the page."""

from __future__ import annotations

from typing import Any

__all__ = ["enter"]


def enter(page: Any, room: str) -> None:
    page.click(f"nav a[href='#{room}']")
    page.wait_for_selector(f"nav a[href='#{room}'][aria-current=page]")
