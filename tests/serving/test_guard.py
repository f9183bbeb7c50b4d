"""Who is let through: host, origin, token, size."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from serving.guard import COOKIE, LOOPBACK, Guard, is_loopback

TOKEN = "correct-horse"


def ask(
    headers: dict[str, str], *, token: str | None = None, hosts: Any = LOOPBACK, query: str = "", body: bytes = b""
) -> tuple[int, dict[str, str]]:
    """Status and headers of the answer of a guarded server that reads the body and says 200."""
    sent: list[MutableMapping[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    parts = [
        {"type": "http.request", "body": body[:60], "more_body": True},
        {"type": "http.request", "body": body[60:]},
    ]

    async def receive() -> Any:
        return parts.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "path": "/videos",
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    asyncio.run(Guard(app, hosts, token, 100)(scope, receive, send))
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


def test_what_comes_from_here_is_let_through() -> None:
    for host in ("127.0.0.1:8000", "localhost:8000", "localhost", "[::1]:8000", "[::1]"):
        status, headers = ask({"host": host, "origin": f"http://{host}"})
        assert status == 200 and "default-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    assert ask({"host": "127.0.0.1:8000", "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"})[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),  # a name that was made to point here
        ({"host": "evil.example:8000"}, 421),
        ({}, 421),
        ({"host": "localhost.evil.example"}, 421),
        ({"host": "127.0.0.1:8000", "origin": "http://evil.example"}, 403),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:9000"}, 403),
        ({"host": "127.0.0.1:8000", "origin": "null"}, 403),
        ({"host": "127.0.0.1:8000", "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"host": "localhost", "content-length": "101"}, 413),
        ({"host": "localhost", "content-length": "-1"}, 413),
        ({"host": "localhost", "content-length": "9" * 30}, 413),
    ],
)
def test_others_are_refused(headers: dict[str, str], status: int) -> None:
    assert ask(headers)[0] == status


def test_a_body_is_counted_whatever_it_says_of_itself() -> None:
    assert ask({"host": "localhost"}, body=b"x" * 100)[0] == 200
    assert ask({"host": "localhost"}, body=b"x" * 101)[0] == 413


def test_a_token_comes_once_in_the_address_and_then_by_cookie() -> None:
    anywhere: dict[str, Any] = {"token": TOKEN, "hosts": None}
    host = {"host": "gpu-box:8000"}
    assert ask(host, **anywhere)[0] == 401
    assert ask(host | {"authorization": f"Bearer {TOKEN}"}, **anywhere)[0] == 200
    assert ask(host | {"authorization": "Bearer wrong"}, **anywhere)[0] == 401
    assert ask(host | {"authorization": f"Basic {TOKEN}"}, **anywhere)[0] == 401
    status, headers = ask(host, query=f"token={TOKEN}", **anywhere)
    assert (status, headers["location"]) == (303, "/")
    assert "HttpOnly" in headers["set-cookie"] and "SameSite=Strict" in headers["set-cookie"]
    assert ask(host, query="token=wrong", **anywhere)[0] == 401
    assert ask(host | {"cookie": headers["set-cookie"].split(";")[0]}, **anywhere)[0] == 200
    assert ask(host | {"cookie": f"{COOKIE}=wrong"}, **anywhere)[0] == 401
    assert ask(host | {"cookie": "\x00;;="}, **anywhere)[0] == 401
    # Whoever has it is still no other page.
    assert ask(host | {"authorization": f"Bearer {TOKEN}", "origin": "http://evil.example"}, **anywhere)[0] == 403


def test_addresses_of_this_machine() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "[::1]", "127.1.2.3")))
    assert not any(map(is_loopback, ("0.0.0.0", "192.168.0.2", "gpu-box", "localhost.evil.example")))
