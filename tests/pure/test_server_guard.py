"""Who is let in: pages and machines of strangers are not, whatever they call themselves."""

from __future__ import annotations

import asyncio

import pytest
from asgi_calls import Client, call
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from memfit.errors import UsageError, WrongValueError
from memfit.server.failures import BusyError
from memfit.server.guard import Guard
from memfit.server.settings import Limits, Settings, is_loopback

_CORS = "access-control-allow-origin"
_EVIL = "http://evil.example"


async def _inside(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("inside")(scope, receive, send)


def _guard(**values: object) -> Guard:
    return Guard(_inside, Settings(**values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8080", "localhost:8080", "LOCALHOST", "[::1]", "[::1]:8080", "a.localhost:1"],
)
def test_this_machines_names_are_let_in(host: str) -> None:
    assert call(_guard(), host=host).body == b"inside"


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8080", "localhost.evil.example", "notlocalhost", "0.0.0.0:8080"),
        *("10.0.0.1", "[::1]evil.example", "[::2]:80", "127.0.0.1.evil.example", "127.0.0.1@evil.example"),
        *("localhost:80:80", "[", ":80", "::1", "127.1", " ", "evil.example#.localhost:x"),
    ],
)
def test_a_name_of_a_strangers_that_leads_here_is_refused(host: str) -> None:
    found = call(_guard(), host=host)
    assert found.status == 403 and "Host" in found.error["message"] and _CORS not in found.headers


def test_programs_without_a_host_are_let_in_and_pages_without_one_are_not() -> None:
    assert call(_guard(), host="").status == 200
    assert call(_guard(), host="", origin="null").status == 403


def test_where_other_machines_may_come_their_names_for_this_one_count() -> None:
    open_to_all = {"hosts": ("0.0.0.0",), "insecure": True}
    assert call(_guard(**open_to_all), host="box.example:8080").status == 200
    assert call(_guard(insecure=True), host="box.example:8080").status == 200
    # A page that this server's own name has brought is its own.
    own = call(_guard(**open_to_all), host="box.example:8080", origin="http://box.example:8080")
    assert own.status == 200 and _CORS not in own.headers
    assert call(_guard(**open_to_all), host="box.example:8080", origin="http://box.example").status == 403


@pytest.mark.parametrize(
    "origin",
    [
        *(_EVIL, "https://evil.example:8080", "null", "", "file://", "http://", "http://[", "http://[::1"),
        *("http://localhost.evil.example", "http://localhost@evil.example", "http://evil.example/localhost"),
        *("javascript://localhost", "chrome-extension://abc", "moz-extension://abc", "ftp://localhost"),
        *("http://evil.example http://localhost", "//localhost", "localhost", "x" * 5000, "http://\xe9"),
    ],
)
def test_pages_of_strangers_are_refused(origin: str) -> None:
    headers = {"origin": origin or " "}
    found = call(_guard(), **headers)
    assert found.status == 403 and "Origin" not in found.body.decode() and _CORS not in found.headers
    assert len(found.error["message"]) < 300
    asked = call(_guard(), "OPTIONS", access_control_request_method="POST", **headers)
    assert asked.status == 200 and not [name for name in asked.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "origin",
    [
        *("http://localhost", "http://localhost:3000", "https://127.0.0.1:3000", "http://[::1]:3000"),
        *("app://obsidian.md", "tauri://localhost", "vscode-webview://abc", "vscode-file://vscode-app"),
    ],
)
def test_pages_of_this_machine_and_programs_are_let_in(origin: str) -> None:
    found = call(_guard(), origin=origin)
    assert found.status == 200 and _CORS not in found.headers


def test_pages_that_cors_names_are_let_in_and_told_so() -> None:
    guard = _guard(cors=("https://page.example", "https://other.example"))
    for method in ("GET", "OPTIONS"):
        found = call(guard, method, origin="https://page.example", access_control_request_method="POST")
        assert found.status == 200 and found.headers[_CORS] == "https://page.example"
        assert found.headers["vary"] == "Origin" and "POST" in found.headers["access-control-allow-methods"]
        assert found.headers["access-control-allow-headers"] == "*"
    for origin in (_EVIL, "https://page.example.evil.example", "http://page.example", "null", "http://["):
        assert call(guard, origin=origin).status == 403
        assert _CORS not in call(guard, "OPTIONS", origin=origin).headers


def test_cors_for_all_and_for_this_machine() -> None:
    assert call(_guard(cors=("*",)), origin=_EVIL).headers[_CORS] == _EVIL
    assert call(_guard(cors=("*",)), origin="null").headers[_CORS] == "null"
    assert _CORS not in call(_guard(cors=("*",))).headers, "nobody asked"
    local = _guard(cors=("localhost",))
    assert call(local, origin="http://localhost:3000").headers[_CORS] == "http://localhost:3000"
    assert call(local, origin="http://localhost.evil.example").status == 403
    assert call(local, origin="http://[").status == 403


def test_refusals_of_keys_reach_pages_that_may_read_them() -> None:
    found = call(_guard(cors=("*",), api_keys=("secret",)), origin=_EVIL)
    assert found.status == 401 and found.headers[_CORS] == _EVIL


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer secret"},
        {"authorization": "bearer  secret "},
        {"x-api-key": "secret"},
        {"x-api-key": "second", "authorization": "Bearer wrong"},
        {"x-api-key": "wrong", "authorization": "Bearer second"},
    ],
)
def test_a_right_key_is_let_in(headers: dict[str, str]) -> None:
    assert call(_guard(api_keys=("secret", "second")), **headers).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        *({}, {"authorization": "secret"}, {"authorization": "Basic secret"}, {"authorization": "Bearer"}),
        *({"authorization": "Bearer "}, {"x-api-key": " "}, {"x-api-key": "Secret"}, {"x-api-key": "secre"}),
        *({"authorization": "Bearer secret2"}, {"x-api-key": "\xff\xfe"}, {"x-api-key": "s" * 10_000}),
        {"cookie": "api_key=secret"},
    ],
)
def test_a_wrong_key_is_refused_and_not_repeated(headers: dict[str, str]) -> None:
    found = call(_guard(api_keys=("secret", "second")), **headers)
    assert found.status == 401 and found.error["type"] == "authentication_error"
    assert b"secre" not in found.body


def test_keys_of_any_letters_work_as_clients_send_them() -> None:
    guard = _guard(api_keys=("schlüssel-ключ",))

    async def status(sent: bytes) -> int:
        client = Client("GET", "/v1/models", headers={"authorization": b"Bearer " + sent})
        return (await client.through(guard)).status

    assert asyncio.run(status("schlüssel-ключ".encode())) == 200
    assert asyncio.run(status("schlüssel-ключ".encode("utf-16-le"))) == 401


@pytest.mark.parametrize("path", ["/", "/health", "/v1/health"])
def test_public_paths_need_no_key_but_the_right_host(path: str) -> None:
    guard = _guard(api_keys=("secret",))
    assert call(guard, path=path).status == 200
    assert call(guard, path=path, host="evil.example").status == 403
    assert call(guard, path=path, origin=_EVIL).status == 403
    assert call(guard, path=path + "/x").status == 401 or path == "/"


@pytest.mark.parametrize("path", ["/metrics", "/props", "/slots", "/health/", "//health", "/v1/models"])
def test_other_paths_need_the_key(path: str) -> None:
    assert call(_guard(api_keys=("secret",)), path=path).status == 401


def test_headers_that_are_too_large_are_refused() -> None:
    guard = _guard(limits=Limits(header_bytes=1000))
    assert call(guard, x="a" * 800).status == 200
    assert call(guard, x="a" * 1001).status == 431
    assert call(guard, path="/" + "a" * 1001).status == 431


def test_what_is_no_call_goes_through() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    guard = Guard(app, Settings(api_keys=("secret",)))
    client = Client()
    asyncio.run(guard({"type": "lifespan"}, client.receive, client.send))
    assert seen == ["lifespan"]


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.2", "box.example", "fe80::1", "127.0.0.1.example"]
)
def test_an_address_that_others_reach_needs_a_key(host: str) -> None:
    with pytest.raises(UsageError, match="--api-key KEY, or --insecure") as raised:
        Settings(hosts=("127.0.0.1", host))
    assert host in str(raised.value) and raised.value.exit_code == 2
    Settings(hosts=(host,), api_keys=("secret",))
    Settings(hosts=(host,), insecure=True)


@pytest.mark.parametrize("key", ["", " ", "\t"])
def test_an_empty_key_is_no_key(key: str) -> None:
    with pytest.raises(WrongValueError, match="--api-key is empty"):
        Settings(hosts=("0.0.0.0",), api_keys=("secret", key))


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_is_none(port: int) -> None:
    with pytest.raises(WrongValueError, match="between 0 and 65535"):
        Settings(port=port)


def test_this_machines_addresses() -> None:
    assert all(
        map(is_loopback, ("127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "LocalHost", "a.localhost"))
    )
    assert not any(map(is_loopback, ("", "0.0.0.0", "localhost.", "1.1.1.1", "evil.example", "localhostx")))


def test_bodies_of_all_calls_together_are_bounded_and_given_back() -> None:
    taken = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["more_body"]:
            pass
        if scope["path"] == "/slow":
            await taken.wait()
        await PlainTextResponse("inside")(scope, receive, send)

    async def scenario() -> None:
        guard = Guard(app, Settings(limits=Limits(bodies_bytes=100)))
        slow = asyncio.ensure_future(Client(path="/slow", pieces=[b"a" * 60]).through(guard))
        await asyncio.sleep(0.01)
        with pytest.raises(BusyError, match="busy; try again in 1 s"):
            await Client(pieces=[b"a" * 30, b"a" * 30]).through(guard)
        assert (await Client(pieces=[b"a" * 40]).through(guard)).status == 200
        taken.set()
        assert (await slow).status == 200
        assert (await Client(pieces=[b"a" * 100]).through(guard)).status == 200

    asyncio.run(scenario())


def test_pages_may_send_the_headers_that_they_name() -> None:
    asked = "authorization,content-type"
    found = call(_guard(cors=("*",)), method="OPTIONS", origin=_EVIL, access_control_request_headers=asked)
    assert found.headers["access-control-allow-headers"] == asked


@pytest.mark.parametrize("origin", ["foo", "https://page.example/", "https://", "page.example", ""])
def test_a_page_that_is_none_is_refused(origin: str) -> None:
    with pytest.raises(WrongValueError, match="needed https"):
        Settings(cors=(origin,))


@pytest.mark.parametrize("key", [" secret", "secret\t"])
def test_a_key_that_no_header_can_carry_is_refused(key: str) -> None:
    with pytest.raises(WrongValueError, match="begins or ends with a space"):
        Settings(api_keys=(key,))
