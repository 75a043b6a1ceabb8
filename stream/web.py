"""The worker's HTTP endpoints: is it alive, is it ready, its metrics, and a user's profile."""

from __future__ import annotations

import hmac
import socket
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import web
from mode import Service
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from stream.settings import Web

Answer = tuple[int, dict[str, Any]]


class WebServer(Service):
    """Serves `/livez`, `/readyz`, `/metrics` and `/profiles/{user_id}`; on loopback unless the settings say otherwise.

    What is known of a user is told only to those who send the token (`Authorization: Bearer …`), also on loopback: whoever has an
    account on the machine can reach that. Without a token in the settings nobody is told.

    Args:
        settings: address, port and token; port 0 takes a free one.
        ready: what `/readyz` says; its status is 503 until the worker answers events.
        profile: what `/profiles/{user_id}` says.
    """

    def __init__(self, settings: Web, ready: Callable[[], Answer], profile: Callable[[str], Answer], **kwargs: Any) -> None:
        self._settings = settings
        self._ready = ready
        self._profile = profile
        self._runner: web.AppRunner | None = None
        super().__init__(**kwargs)

    async def on_start(self) -> None:
        """Listen."""
        server = web.Application()
        server.add_routes(
            [
                web.get("/livez", self._livez),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
                web.get("/profiles/{user_id}", self._profiles),
            ]
        )
        self._runner = web.AppRunner(server, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._settings.host, self._settings.port).start()
        host, port = self._runner.addresses[0][:2]
        self.log.info("Listening on http://%s:%d", host, port)

    async def on_stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _livez(self, request: web.Request) -> web.Response:
        return _json((200, {"alive": True}))

    async def _readyz(self, request: web.Request) -> web.Response:
        return _json(self._ready())

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _profiles(self, request: web.Request) -> web.Response:
        token = self._settings.token
        if token is None:
            return _json((403, {"error": "profiles are off: set DRIFTSTREAM_WEB__TOKEN, for the worker and for whoever asks it"}))
        sent, expected = request.headers.get("Authorization", ""), f"Bearer {token.get_secret_value()}"
        if not hmac.compare_digest(
            sent.encode(errors="surrogateescape"), expected.encode()
        ):  # takes as long wherever the difference is
            refusal = _json((401, {"error": "a profile needs the worker's token: set DRIFTSTREAM_WEB__TOKEN to the same"}))
            refusal.headers["WWW-Authenticate"] = "Bearer"
            return refusal
        return _json(self._profile(request.match_info["user_id"]))


def _json(answer: Answer) -> web.Response:
    status, body = answer
    return web.Response(status=status, body=msgspec.json.encode(body), content_type="application/json")


def free_port() -> int:
    """Return a port on loopback that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
