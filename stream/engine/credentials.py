"""The broker's settings as Faust's consumer wants them: aiokafka takes a TLS context, and asks us for OAuth tokens."""

from __future__ import annotations

import asyncio
import ssl
from base64 import b64encode
from time import time

import aiohttp
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaConnectionError
from faust import SASLCredentials, SSLCredentials
from faust.auth import Credentials, OAuthCredentials
from oauthlib.oauth2 import BackendApplicationClient, OAuth2Error

from stream.connection import Broker, BrokerError

LEEWAY = 30.0  # seconds before its end at which a token is not used any more
TOKEN_SECONDS = 10.0  # that the token's server may take


def credentials(broker: Broker) -> Credentials | None:
    """Return what Faust passes on to aiokafka; None where no security is asked for.

    Raises:
        BrokerError: certificate or key cannot be read.
    """
    context = tls_context(broker) if broker.tls else None
    if broker.oauth:
        return OAuthCredentials(oauth_cb=ClientCredentials(broker), ssl_context=context)
    if broker.sasl:
        return SASLCredentials(
            mechanism=broker.sasl_mechanism,
            username=broker.sasl_username,
            password=broker.sasl_password.get_secret_value(),
            ssl_context=context,
        )
    return None if context is None else SSLCredentials(context)


def tls_context(broker: Broker) -> ssl.SSLContext:
    """Return a context that verifies the broker's certificate and name, and shows our own certificate if there is one.

    Raises:
        BrokerError: a file cannot be read, or the password does not open the key.
    """
    try:
        context = ssl.create_default_context(cafile=broker.ca_file)
        if broker.certificate_file is not None:
            # Not None, for which OpenSSL would ask at the terminal.
            password = "" if broker.key_password is None else broker.key_password.get_secret_value()
            context.load_cert_chain(broker.certificate_file, broker.key_file, password)
    except OSError as error:  # ssl.SSLError is one
        names = "CA_FILE, DRIFTSTREAM_BROKER__CERTIFICATE_FILE, DRIFTSTREAM_BROKER__KEY_FILE, DRIFTSTREAM_BROKER__KEY_PASSWORD"
        raise BrokerError(f"the connection cannot be set up ({error}); check DRIFTSTREAM_BROKER__{names}") from error
    return context


class ClientCredentials(AbstractTokenProvider):
    """Fetches tokens as librdkafka's OIDC method does (RFC 6749, section 4.4), and keeps each until shortly before it ends."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._client = BackendApplicationClient(broker.sasl_username)
        self._token = ""
        self._until = 0.0
        self._one_at_a_time = asyncio.Lock()

    async def token(self) -> str:
        """Return a token that is valid for a while.

        Raises:
            KafkaConnectionError: the server gives none. aiokafka tries again.
        """
        async with self._one_at_a_time:
            if time() > self._until:
                await self._fetch()
            return self._token

    async def _fetch(self) -> None:
        broker = self._broker
        login = f"{broker.sasl_username}:{broker.sasl_password.get_secret_value()}"
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(TOKEN_SECONDS)) as session,
                session.post(
                    broker.oauth_token_url,
                    data=self._client.prepare_request_body(scope=broker.oauth_scope or None),
                    headers={
                        "Content-Type": "application/x-www-form-urlencoded",
                        "Accept": "application/json",
                        "Authorization": f"Basic {b64encode(login.encode()).decode()}",
                    },
                    ssl=ssl.create_default_context(cafile=broker.oauth_ca_file),
                ) as response,
            ):
                answer = await response.text()
            found = self._client.parse_request_body_response(answer)
        except (aiohttp.ClientError, TimeoutError, OAuth2Error) as error:
            raise KafkaConnectionError(f"no token from {broker.oauth_token_url}: {error or type(error).__name__}") from error
        self._token = found["access_token"]
        self._until = time() + float(found.get("expires_in", LEEWAY + 1)) - LEEWAY
