"""Who may ask: the host and the origin of a request, a token, and the size of what it brings (docs/serve.md, "Safety").

A server on a loopback address can still be reached by every page that a browser on the machine has open; those come
with another origin, or with a host name that is not ours.
"""

import http.cookies
import ipaddress
import secrets
import urllib.parse
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
COOKIE = "flowcache_token"
PAGE_POLICY = (
    "default-src 'self'; media-src 'self' blob:; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"
)
# FastAPI's own page takes its scripts from there.
DOCS_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' https://cdn.jsdelivr.net; style-src 'self' 'unsafe-inline' "
    "https://cdn.jsdelivr.net; img-src 'self' data: https://fastapi.tiangolo.com; frame-ancestors 'none'"
)
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class TooLargeError(Exception):
    """A body of more bytes than are taken."""


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """Lets requests through to ``app``.

    Args:
        hosts: names by which the server may be called, without a port; None takes any, which needs a token.
        token: what every request has to bring, in a header, a cookie, or once in the address.
        most_bytes: of a body.
    """

    def __init__(self, app: App, hosts: Iterable[str] | None, token: str | None, most_bytes: int) -> None:
        self.app, self.token, self.most_bytes = app, token, most_bytes
        self.hosts = None if hosts is None else frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(headers)
        if refusal is not None:
            await answer(send, *refusal)
            return
        if self.token is not None:
            given = urllib.parse.parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
            if given and secrets.compare_digest(given.encode(), self.token.encode()):
                cookie = f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/"
                await answer(send, 303, "", {"location": "/", "set-cookie": cookie})
                return
            if not self._has_token(headers):
                await answer(send, 401, "this server wants its token: open the address that it printed")
                return
        policy = DOCS_POLICY if scope["path"] in ("/docs", "/redoc") else PAGE_POLICY
        try:
            await self.app(
                scope, self._counted(receive), with_headers(send, HEADERS | {"content-security-policy": policy})
            )
        except TooLargeError:
            await answer(send, 413, f"at most {self.most_bytes} bytes are taken")

    def _refusal(self, headers: dict[str, str]) -> tuple[int, str] | None:
        """Status and reason."""
        host = headers.get("host", "")
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        if self.hosts is not None and name not in self.hosts:
            return 421, f"this server is not {name!r}"
        origin = headers.get("origin")
        if origin is not None and urllib.parse.urlsplit(origin).netloc != host:
            return 403, "requests from other pages are refused"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate":
            return 403, "requests from other pages are refused"
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self.most_bytes:
            return 413, f"at most {self.most_bytes} bytes are taken"
        return None

    def _has_token(self, headers: dict[str, str]) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            try:
                cookies = http.cookies.SimpleCookie(headers.get("cookie", ""))
            except http.cookies.CookieError:
                return False
            given = cookies[COOKIE].value if COOKIE in cookies else ""
        return secrets.compare_digest(given.encode(), str(self.token).encode())

    def _counted(self, receive: Receive) -> Receive:
        """A body without a length is counted while it comes."""
        total = 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self.most_bytes:
                raise TooLargeError
            return message

        return counted


def with_headers(send: Send, headers: dict[str, str]) -> Send:
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            more = [(name.encode(), value.encode()) for name, value in headers.items()]
            message = {**message, "headers": [*message.get("headers", []), *more]}
        await send(message)

    return sending


async def answer(send: Send, status: int, text: str, headers: dict[str, str] | None = None) -> None:
    """A short plain answer."""
    all_headers = {"content-type": "text/plain; charset=utf-8", **HEADERS, **(headers or {})}
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(name.encode(), value.encode()) for name, value in all_headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": text.encode()})
