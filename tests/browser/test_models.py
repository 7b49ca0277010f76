"""The room of models in a real browser: a hub on loopback is compared, pulled from and fails."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from rooms import enter

from hub_server import HubServer
from memfit.hub.local_model import local_path

pytestmark = pytest.mark.engine

_WAIT_MS = 120_000  # plans take seconds, on a busy machine many
_HOSTILE = "<img src=x onerror=document.title='taken'>.gguf"
_BYTES = random.Random(7).randbytes(3_000_000)
_SEVERAL = "hf:org/several"


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        server.add_repo(
            "org/several", {"s-Q4_1.gguf": Path(local_path("demo")), "s-Q8_0.gguf": _BYTES, _HOSTILE: b"no"}
        )
        yield server


@pytest.fixture(scope="module")
def address(
    served: Callable[..., AbstractContextManager[str]],
    hub: HubServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """Of a server whose library is empty at first."""
    folder = str(tmp_path_factory.mktemp("library"))
    with served(HF_ENDPOINT=hub.url, HF_HOME=folder, HF_HUB_OFFLINE="0", TRANSFORMERS_OFFLINE="0") as found:
        yield found


@pytest.fixture
def models(page: Any, hub: HubServer) -> Iterator[Any]:
    enter(page, "models")
    page.wait_for_selector(".models .served")
    yield page
    hub.behave()
    hub.bytes_per_second = None


def _compare(page: Any, name: str) -> None:
    page.fill(".search input", name)
    page.click(".search .primary")


def _row(page: Any, text: str) -> Any:
    return page.locator(".quantizations tbody tr", has_text=text)


def _here(page: Any, name: str) -> Any:
    return page.locator("h3 + .models > li", has_text=name)


def _expected(complaints: list[str], *statuses: int) -> None:
    """Take out what a browser says of answers that are errors."""
    told = tuple(f"status of {status}" for status in statuses)
    complaints[:] = [one for one in complaints if not any(text in one for text in told)]


def test_a_repository_is_compared_by_headers_alone(
    models: Any, hub: HubServer, complaints: list[str]
) -> None:
    _compare(models, "hf.co/org/several")
    good = _row(models, "Q4_1")
    good.locator("p.fits").wait_for(timeout=_WAIT_MS)
    plan = models.evaluate(
        "(model) => fetch('plan', {method: 'POST', body: JSON.stringify({model})}).then((one) => one.json())",
        f"{_SEVERAL}/s-Q4_1.gguf",
    )
    (ram, *_) = plan["tiers"]
    cells = good.inner_text()
    assert f"{ram['total_bytes'] / 2**20:.2f}" in cells or f"{ram['total_bytes'] / 2**20:.0f} MiB" in cells
    rate = plan["predicted"]["generation_tokens_per_second"]
    assert "tok/s" in cells and f"({round(rate['low'])}\N{EN DASH}{round(rate['high'])})" in cells
    assert "published for the type" in cells
    damaged = _row(models, "Q8_0")
    damaged.locator(".error").wait_for(timeout=_WAIT_MS)
    assert "s-Q8_0.gguf" in damaged.inner_text()
    hostile = _row(models, "<img")
    hostile.locator(".error").wait_for(timeout=_WAIT_MS)
    assert models.locator("main img").count() == 0 and models.title() == "Models · memfit"
    assert sum(sent for path, sent in hub.bytes_sent.items() if "Q4_1" in path) < ram["weights_bytes"] // 4
    _expected(complaints, 400)


def test_what_does_not_fit_says_what_it_lacks(models: Any, hub: HubServer) -> None:
    hub.add_repo("org/large", {"l-Q4_1.gguf": Path(local_path("demo"))})
    answers: list[Any] = []

    def with_less(route: Any) -> None:
        """The page asks for the running budget, which has room enough."""
        if route.request.method != "POST":
            route.continue_()
            return
        body = {**route.request.post_data_json, "budget": {"ram": "150MiB", "disk": False}}
        answer = route.fetch(post_data=json.dumps(body), timeout=_WAIT_MS)
        answers.append(answer.json())
        route.fulfill(response=answer)

    models.route("**/plan", with_less)
    _compare(models, "hf.co/org/large")
    row = _row(models, "Q4_1")
    row.locator("p.fits.not").wait_for(timeout=_WAIT_MS)
    models.unroute("**/plan")
    assert f"Lacks {answers[0]['short_bytes'] / 2**20:.0f} MiB" in row.inner_text()
    assert "of 150 MiB" in row.inner_text()


def test_a_model_is_pulled_listed_planned_and_removed(
    models: Any, hub: HubServer, complaints: list[str]
) -> None:
    hub.bytes_per_second = 500_000
    _compare(models, "hf.co/org/several:Q8_0")
    row = _row(models, "Q8_0")
    row.get_by_role("button").click()
    progress = models.locator("progress")
    progress.wait_for()
    models.wait_for_function(
        "() => [...document.querySelectorAll('progress')].some((one) => one.value > 0 && one.value < one.max)"
    )
    assert progress.get_attribute("aria-label") == f"Download of {_SEVERAL}/s-Q8_0.gguf"
    assert float(progress.get_attribute("max")) == len(_BYTES)
    models.wait_for_selector("li:has(progress) >> text=iB/s")
    here = _here(models, f"{_SEVERAL}/s-Q8_0.gguf")
    here.wait_for(timeout=_WAIT_MS)
    assert progress.count() == 0 and "is here" in row.inner_text()
    assert "2.86 MiB" in here.inner_text()
    here.get_by_role("button", name="Does").click()
    here.locator(".error").wait_for(timeout=_WAIT_MS)  # it is no model, which planning says
    models.once("dialog", lambda dialog: dialog.dismiss())
    here.get_by_role("button", name="Delete").click()
    assert here.count() == 1
    models.once("dialog", lambda dialog: dialog.accept())
    here.get_by_role("button", name="Delete").click()
    here.wait_for(state="detached")
    assert _here(models, "demo").get_by_role("button").count() == 0  # the one that is served stays
    _expected(complaints, 400)


def test_a_download_is_cancelled_and_goes_on(models: Any, hub: HubServer) -> None:
    hub.misbehave("stall", 1_000_000, path="/cdn/*Q8_0*")
    models.fill(".search input", "hf.co/org/several:Q8_0")
    models.get_by_role("button", name="Download", exact=True).click()
    models.wait_for_function("() => document.querySelector('progress')?.value > 1e5", timeout=_WAIT_MS)
    models.get_by_role("button", name="Cancel").click()
    models.wait_for_selector("text=What has come is kept")
    hub.behave()
    models.get_by_role("button", name="Go on").click()
    here = _here(models, f"{_SEVERAL}/s-Q8_0.gguf")
    here.wait_for(timeout=_WAIT_MS)
    ranges = [one.range for one in hub.requests_of("/cdn/*Q8_0*", "GET")]
    assert ranges[-1] not in (None, "bytes=0-2999999")
    models.once("dialog", lambda dialog: dialog.accept())
    here.get_by_role("button", name="Delete").click()
    here.wait_for(state="detached")


def test_what_the_hub_says_is_shown(models: Any, hub: HubServer, complaints: list[str]) -> None:
    hub.misbehave("status", 500, path="/api/models/org/several")
    _compare(models, "hf.co/org/several")
    models.wait_for_selector("[role=alert] >> text=answers: ")
    _compare(models, "hf.co/org/none")
    models.wait_for_selector("[role=alert] >> text=there is no hf:org/none")
    assert models.locator(".quantizations").count() == 0
    models.get_by_role("button", name="Download", exact=True).click()
    models.wait_for_selector("li [role=alert] >> text=there is no hf:org/none")
    models.get_by_role("button", name="Take hf.co/org/none off this list").click()
    assert models.locator("li [role=alert]").count() == 0
    _expected(complaints, 400, 404)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("language", ["en", "ar"])
def test_a_full_room_keeps_nobody_out(models: Any, complaints: list[str], language: str, theme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    models.emulate_media(color_scheme=theme)
    models.select_option("header select", language)
    models.wait_for_selector(f"html[lang={language}]")
    _compare(models, "hf:org/several")
    _row(models, "Q4_1").locator("p.fits").wait_for(timeout=_WAIT_MS)
    _row(models, "<img").locator(".error").wait_for(timeout=_WAIT_MS)
    found = axe.run(models)
    assert found.violations_count == 0, found.generate_report()
    models.set_viewport_size({"width": 360, "height": 740})
    assert models.evaluate("() => document.querySelector('main').scrollWidth <= innerWidth")
    _expected(complaints, 400)
