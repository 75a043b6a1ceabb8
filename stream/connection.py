"""How the program gets to Kafka: one set of settings for both of its clients, and what to say where there is no way in.

Everything that librdkafka opens (producer, admin, doctor, `produce`, recovery, broadcast, stable offsets) takes `Broker.librdkafka()`.
Faust's consumer takes the same settings in aiokafka's form: `stream/engine/credentials.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from pydantic import BaseModel, ConfigDict, Field, FilePath, SecretStr, model_validator

ANSWER_SECONDS = 10.0
"""How long a broker may take to answer at all."""
CRITICAL = 2  # of syslog's levels, which are librdkafka's too


class Broker(BaseModel):
    """Where Kafka is, and how to get in.

    `security_protocol` has Kafka's own names. TLS always verifies the broker's certificate and name. For OAUTHBEARER, `sasl_username`
    and `sasl_password` are the client's id and secret, which are given to `oauth_token_url` for a token (client credentials).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    servers: str = "127.0.0.1:9092"
    group: str = "driftstream"
    session_timeout_ms: Annotated[int, Field(ge=1000)] = 45_000

    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    ca_file: FilePath | None = None  # the system's where not given
    certificate_file: FilePath | None = None  # our own, for mutual TLS, with what it is signed by
    key_file: FilePath | None = None
    key_password: SecretStr | None = None
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = "SCRAM-SHA-512"
    sasl_username: str = ""
    sasl_password: SecretStr = SecretStr("")
    oauth_token_url: str = ""
    oauth_scope: str = ""
    oauth_ca_file: FilePath | None = None  # of the token's server; the system's where not given

    @property
    def tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.security_protocol.endswith("SSL")

    @property
    def sasl(self) -> bool:
        """Whether to log in with a name and a secret."""
        return self.security_protocol.startswith("SASL")

    @property
    def oauth(self) -> bool:
        """Whether to log in with a token."""
        return self.sasl and self.sasl_mechanism == "OAUTHBEARER"

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file belong together; set both or neither")
        if self.sasl and not (self.sasl_username and self.sasl_password.get_secret_value()):
            raise ValueError(f"{self.security_protocol} needs sasl_username and sasl_password")
        if self.oauth:
            url = urlsplit(self.oauth_token_url)
            if url.scheme != "https" and url.hostname not in ("127.0.0.1", "localhost"):
                raise ValueError("OAUTHBEARER needs an oauth_token_url that begins with https://, since the secret is sent there")
        return self

    def librdkafka(self) -> dict[str, Any]:
        """Return the connection's settings as librdkafka names them. Secrets are in there in the clear: never print it."""
        config: dict[str, Any] = {"bootstrap.servers": self.servers, "security.protocol": self.security_protocol}
        if self.tls:
            config |= {"ssl.ca.location": _text(self.ca_file), "ssl.certificate.location": _text(self.certificate_file)}
            config |= {"ssl.key.location": _text(self.key_file), "ssl.key.password": _secret(self.key_password)}
        if self.sasl:
            config["sasl.mechanism"] = self.sasl_mechanism
        if self.oauth:
            config |= {
                "sasl.oauthbearer.method": "oidc",
                "sasl.oauthbearer.token.endpoint.url": self.oauth_token_url,
                "sasl.oauthbearer.client.id": self.sasl_username,
                "sasl.oauthbearer.client.secret": _secret(self.sasl_password),
                "sasl.oauthbearer.scope": self.oauth_scope or None,
                "https.ca.location": _text(self.oauth_ca_file),
            }
        elif self.sasl:
            config |= {"sasl.username": self.sasl_username, "sasl.password": _secret(self.sasl_password)}
        return {name: value for name, value in config.items() if value is not None}


class BrokerError(Exception):
    """There is no way to the broker; the message says why, and which setting to look at. It holds no secret."""


def connect(connection: Mapping[str, Any]) -> AdminClient:
    """Return a client of a broker that has answered.

    Args:
        connection: librdkafka's settings: `Broker.librdkafka()`.

    Raises:
        BrokerError: nobody answers in ten seconds, or the broker refuses who we are, or we refuse who it is.
    """
    complaints: list[KafkaError] = []
    try:
        # What goes wrong is raised. librdkafka would write a line for each attempt as well, twenty a second.
        admin = AdminClient({**connection, "error_cb": complaints.append, "log_level": CRITICAL})
    except KafkaException as error:  # a certificate or a key that cannot be read
        raise BrokerError(_advice(connection, error.args[0])) from error
    deadline = monotonic() + ANSWER_SECONDS
    while True:
        try:
            admin.list_topics(timeout=1.0)
        except KafkaException as error:
            admin.poll(0)  # why it failed comes by the callback
            told = [complaint for complaint in complaints if complaint.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL)]
            if told or monotonic() > deadline:
                raise BrokerError(_advice(connection, told[0] if told else error.args[0])) from error
        else:
            return admin


def _advice(connection: Mapping[str, Any], error: KafkaError) -> str:
    servers, reason = connection["bootstrap.servers"], error.str()
    if error.code() == KafkaError._AUTHENTICATION:
        wrong = ["SASL_USERNAME", "SASL_PASSWORD", "SASL_MECHANISM"]
        if "sasl.oauthbearer.method" in connection:
            wrong.append("OAUTH_TOKEN_URL")
        return f"the broker at {servers} does not let us in ({reason}); check {_names(wrong)}"
    if error.code() == KafkaError._SSL:
        wrong = ["CA_FILE", "CERTIFICATE_FILE", "KEY_FILE", "SECURITY_PROTOCOL"]
        return f"no TLS connection to {servers} ({reason}); check {_names(wrong)}"
    if error.code() == KafkaError._INVALID_ARG:
        wrong = ["CA_FILE", "CERTIFICATE_FILE", "KEY_FILE", "KEY_PASSWORD"]
        return f"the connection cannot be set up ({reason}); check {_names(wrong)}"
    return f"no broker answers at {servers} ({reason}). Start one, or check {_names(['SERVERS', 'SECURITY_PROTOCOL'])}"


def _names(settings: list[str]) -> str:
    return ", ".join(f"DRIFTSTREAM_BROKER__{name}" for name in settings)


def _text(path: FilePath | None) -> str | None:
    return None if path is None else str(path)


def _secret(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
