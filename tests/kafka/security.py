"""What a test broker demands of its clients: TLS, and a login or a certificate; and then it allows only what its ACLs say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

PASSWORDS = {"worker": "workers-pass-7Qe", "feeder": "feeders-pass-2Lk"}
KEY_PASSWORD = "key-pass-9Xz"

# Two doors: TLS with a login, and TLS with a certificate. The broker itself, and its controller, use the second.
PROPERTIES = """\
listeners=SASL_SSL://127.0.0.1:{{port}},SSL://127.0.0.1:{{second_port}},CONTROLLER://127.0.0.1:{{controller_port}}
advertised.listeners=SASL_SSL://127.0.0.1:{{port}},SSL://127.0.0.1:{{second_port}}
listener.security.protocol.map=SASL_SSL:SASL_SSL,SSL:SSL,CONTROLLER:SSL
inter.broker.listener.name=SSL
ssl.keystore.type=PEM
ssl.keystore.location={keystore}
ssl.truststore.type=PEM
ssl.truststore.location={truststore}
ssl.client.auth=required
ssl.principal.mapping.rules=RULE:^.*CN=([^,]+).*$/$1/
sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512,PLAIN,OAUTHBEARER
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl_ssl.plain.sasl.jaas.config=\
org.apache.kafka.common.security.plain.PlainLoginModule required user_worker="{plain}";
listener.name.sasl_ssl.oauthbearer.sasl.jaas.config=\
org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:broker;User:admin
"""


@dataclass(frozen=True)
class Security:
    """What makes a broker demand more than its address.

    Attributes:
        properties: go after the broker's own, and before them where they name the same thing; {port}, {second_port} and
            {controller_port} are filled in.
        users: passwords of the users that log in by SCRAM.
        admin: librdkafka's settings for somebody who may do everything.
        ca, stranger: certificates of the authority that signs here, and of another.
        keystore: the broker's key and certificate.
        certificate, key: of the user `worker`; the key opens with KEY_PASSWORD.
    """

    properties: str
    users: Mapping[str, str]
    admin: Mapping[str, str]
    ca: Path
    keystore: Path
    stranger: Path
    certificate: Path
    key: Path


def make_security(folder: Path) -> Security:
    """Make certificates for an hour or so of testing, and what goes with them."""
    folder.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    broker = authority.issue_cert("127.0.0.1", "localhost", common_name="broker")
    worker = authority.issue_cert("worker.test", common_name="worker")
    files = {
        "ca.pem": authority.cert_pem.bytes(),
        "stranger.pem": trustme.CA().cert_pem.bytes(),
        "keystore.pem": _pkcs8(broker.private_key_pem.bytes()) + _chain(broker),
        "worker.pem": _chain(worker),
        "worker.key": _pkcs8(worker.private_key_pem.bytes(), KEY_PASSWORD),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return Security(
        properties=PROPERTIES.format(keystore=folder / "keystore.pem", truststore=folder / "ca.pem", plain=PASSWORDS["worker"]),
        users={**PASSWORDS, "admin": "admins-pass"},
        admin={
            "security.protocol": "SASL_SSL",
            "ssl.ca.location": str(folder / "ca.pem"),
            "sasl.mechanism": "SCRAM-SHA-256",
            "sasl.username": "admin",
            "sasl.password": "admins-pass",
        },
        ca=folder / "ca.pem",
        keystore=folder / "keystore.pem",
        stranger=folder / "stranger.pem",
        certificate=folder / "worker.pem",
        key=folder / "worker.key",
    )


def _chain(certificate: trustme.LeafCert) -> bytes:
    return b"".join(part.bytes() for part in certificate.cert_chain_pems)


def _pkcs8(key: bytes, password: str | None = None) -> bytes:
    """The form of a key that Kafka reads."""
    encryption = NoEncryption() if password is None else BestAvailableEncryption(password.encode())
    return load_pem_private_key(key, None).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
