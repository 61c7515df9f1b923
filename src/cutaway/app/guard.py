"""Who may talk to the app, and how much at a time.

1. The Host header must be an address that was asked for, so that no foreign name can be rebound to this machine.
2. A request that changes something must not come from another site's page (Origin).
3. Any address but loopback needs a token: as ``Authorization: Bearer``, or as the password a browser asks for.
4. A body is read whole, up to a size and a time, before anything else runs.
5. A client that stops reading is dropped after a while.
6. Pages load scripts and styles from here and from nowhere else.
"""

import asyncio
import base64
import binascii
import hmac
import ipaddress
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cutaway.errors import UsageError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
)
SHORTEST_TOKEN = 16
MAX_BODY = 4 << 20
"""Bytes."""
BODY_SECONDS = 30.0
STALL_SECONDS = 60.0
"""How long a client may leave what was sent to it unread."""


@dataclass(frozen=True)
class Access:
    """What the guard lets in."""

    hosts: frozenset[str] | None = LOOPBACK
    """Host names a request may be addressed to; None allows any, which only a token makes safe."""
    token: str | None = None
    max_body: int = MAX_BODY
    body_seconds: float = BODY_SECONDS
    stall_seconds: float = STALL_SECONDS

    def __post_init__(self) -> None:
        if self.token is None and (self.hosts is None or not self.hosts <= LOOPBACK):
            raise UsageError("any address but loopback needs a token; pass --token-file or set CUTAWAY_TOKEN")
        if self.token is not None and (len(self.token) < SHORTEST_TOKEN or not self.token.isascii()):
            raise UsageError(f"the token must be {SHORTEST_TOKEN} ASCII characters or more")


def access(host: str, token: str | None) -> Access:
    """What a server bound to ``host`` lets in. UsageError for an address beyond loopback without a token.

    >>> access("127.0.0.1", None).hosts == LOOPBACK
    True
    """
    if is_loopback(host):
        return Access(LOOPBACK | {host}, token)
    return Access(None if host in ("0.0.0.0", "::", "") else LOOPBACK | {host.lower()}, token)


def is_loopback(host: str) -> bool:
    """Whether ``host`` can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware around the whole app."""

    def __init__(self, app: "ASGIApp", access: Access) -> None:
        self.app = app
        self.access = access

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer what is refused; pass on what is not, with its body already here."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no websockets here: an unanswered one is closed
        send = self._watched(send)
        headers = _headers(scope)
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            status, message = refusal
            await _answer(send, status, message)
            return
        body = await self._body(headers, receive)
        if isinstance(body, tuple):
            await _answer(send, *body)
            return
        if body is not None:
            await self.app(scope, _replay(body, receive), send)

    def _refusal(self, scope: "Scope", headers: dict[str, str]) -> tuple[int, str] | None:
        hosts, host = self.access.hosts, headers.get("host", "")
        if hosts is not None and _name(host) not in hosts:
            return 421, f"this server does not answer for host {host[:80]!r}; use the address it was started with"
        origin = headers.get("origin")
        if origin is not None and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            parts = urlsplit(origin)
            if parts.netloc.lower() != host.lower():
                return 403, f"a page of {origin[:80]!r} may not send requests here"
        if self.access.token is not None and not _authorised(headers, self.access.token):
            return 401, "a token is needed: Authorization: Bearer <token>"
        return None

    async def _body(self, headers: dict[str, str], receive: "Receive") -> bytes | tuple[int, str] | None:
        """The whole body; a refusal; or None when the client is gone."""
        limit = self.access.max_body
        declared = headers.get("content-length", "0")
        if not declared.isdigit():
            return 400, "Content-Length is no number"
        if int(declared) > limit:
            return 413, f"the request is larger than {limit} bytes"
        chunks, size = [], 0
        try:
            async with asyncio.timeout(self.access.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    if size > limit:
                        return 413, f"the request is larger than {limit} bytes"
                    if not message.get("more_body", False):
                        return b"".join(chunks)
        except TimeoutError:
            return 408, f"the request took longer than {self.access.body_seconds:g} s to arrive"

    def _watched(self, send: "Send") -> "Send":
        async def guarded(message: "Message") -> None:
            if message["type"] == "http.response.start":
                given = list(message.get("headers", []))
                if not any(name == b"content-security-policy" for name, _ in given):
                    given.append((b"content-security-policy", POLICY.encode()))
                given += [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
                given += [(b"cross-origin-resource-policy", b"same-origin")]
                message = {**message, "headers": given}
            try:
                async with asyncio.timeout(self.access.stall_seconds):
                    await send(message)
            except TimeoutError:
                raise OSError("the client stopped reading") from None

        return guarded


def _replay(body: bytes, receive: "Receive") -> "Receive":
    sent = False

    async def again() -> "Message":
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _headers(scope: "Scope") -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _name(host: str) -> str:
    """The host without its port.

    >>> _name("LOCALHOST:8000"), _name("[::1]:80"), _name("evil.example@127.0.0.1")
    ('localhost', '::1', '')
    """
    try:
        parts = urlsplit(f"//{host}")
        return "" if parts.username is not None or parts.path else parts.hostname or ""
    except ValueError:
        return ""


def _authorised(headers: dict[str, str], token: str) -> bool:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).decode("utf-8", "replace").partition(":")[2]
        except binascii.Error:
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(given.strip().encode(), token.encode())


async def _answer(send: "Send", status: int, message: str) -> None:
    body = json.dumps(error_body(status, message)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="cutaway: any name, the token as password"'))
    if status in (408, 413):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, object]:
    """An error as the OpenAI protocol words it."""
    # What a client sent may come back in the message: half a surrogate pair, which no encoding could send.
    message = message.encode("utf-8", "replace").decode()
    kind = KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
