"""What the HTTP endpoints tell, and to whom."""

import asyncio
from collections.abc import Callable, Mapping

import aiohttp
import pytest

from stream.ask import AskError, show_profile
from stream.settings import Settings, Web
from stream.web import WebServer, free_port

TOKEN = "a-token-of-the-tests"


def ask(web: Web, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Start a server, and return the status and the text that it answers with."""

    async def run() -> tuple[int, str]:
        server = WebServer(web, lambda: (200, {"ready": True}), lambda user: (200, {"user_id": user}))
        await server.on_start()
        try:
            async with (
                aiohttp.ClientSession() as client,
                client.get(f"http://127.0.0.1:{web.port}{path}", headers=headers) as answer,
            ):
                return answer.status, await answer.text()
        finally:
            await server.on_stop()

    return asyncio.run(run())


def test_a_profile_is_told_to_whoever_sends_the_token() -> None:
    web = Web(port=free_port(), token=TOKEN)
    assert ask(web, "/profiles/anna", {"Authorization": f"Bearer {TOKEN}"}) == (200, '{"user_id":"anna"}')


@pytest.mark.parametrize("sent", [None, "", TOKEN, "Bearer", "Bearer a-token-of-the-test", f"Basic {TOKEN}", "Bearer ÿ"])
def test_a_profile_is_not_told_to_anybody_else(sent: str | None) -> None:
    status, text = ask(Web(port=free_port(), token=TOKEN), "/profiles/anna", None if sent is None else {"Authorization": sent})
    assert status == 401
    assert TOKEN not in text


def test_without_a_token_profiles_are_off_and_the_answer_says_what_to_do() -> None:
    status, text = ask(Web(port=free_port()), "/profiles/anna", {"Authorization": "Bearer "})
    assert status == 403
    assert "DRIFTSTREAM_WEB__TOKEN" in text


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
def test_what_is_not_about_users_is_told_without_a_token(path: str) -> None:
    status, _ = ask(Web(port=free_port(), token=TOKEN), path)
    assert status == 200


def test_the_default_is_to_listen_on_loopback_only() -> None:
    assert Web().host == "127.0.0.1"


@pytest.mark.parametrize(
    ("server", "client", "said"), [(TOKEN, TOKEN, None), (TOKEN, None, "WEB__TOKEN"), (None, TOKEN, "WEB__TOKEN")]
)
def test_the_profile_command_sends_the_token_of_its_settings(
    server: str | None, client: str | None, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[dict[str, object]] = []
    monkeypatch.setattr("stream.ask._print", shown.append)
    port = free_port()

    async def run(asked: Callable[[], None]) -> None:
        web = WebServer(Web(port=port, token=server), lambda: (200, {}), lambda user: (200, {"user_id": user}))
        await web.on_start()
        try:
            await asyncio.to_thread(asked)
        finally:
            await web.on_stop()

    def command() -> None:
        show_profile(Settings(web=Web(port=port, token=client)), "anna", None)

    if said is None:
        asyncio.run(run(command))
        assert shown == [{"user_id": "anna"}]
    else:
        with pytest.raises(AskError, match=said):
            asyncio.run(run(command))
