"""Everything that the program connects with gets through TLS and a login, with the rights that the docs list, and tells no secret."""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import shlex
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from aiokafka import AIOKafkaConsumer
from broker import REPOSITORY, KafkaBroker
from confluent_kafka.admin import AclBinding, AclOperation, AclPermissionType, AdminClient, ResourcePatternType, ResourceType
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth
from security import KEY_PASSWORD, PASSWORDS, Security, make_security
from worker_process import command, read, running_worker

from stream.connection import Broker, BrokerError, connect
from stream.engine.credentials import credentials

PARTITIONS = 2
START = 1_756_684_800_000
SECRETS = [*PASSWORDS.values(), KEY_PASSWORD, "admins-pass"]


@pytest.fixture(scope="module")
def security(tmp_path_factory: pytest.TempPathFactory) -> Security:
    return make_security(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def broker(
    new_kafka: Callable[..., KafkaBroker], security: Security, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[KafkaBroker]:
    """A broker with every topic, and the rights that docs/security.md lists."""
    with new_kafka(tmp_path_factory.mktemp("kafka"), security) as broker:
        made = command(login(broker, security, "admin", "admins-pass"), "topics")
        assert made.returncode == 0, made.stderr
        admin = AdminClient(broker.admin)
        for future in admin.create_acls(documented_rights()).values():
            future.result(30)
        del admin  # it would look for the broker, and say so, long after its end
        yield broker


def documented_rights() -> list[AclBinding]:
    """The rights that the commands in docs/security.md give."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--add", action="store_true")
    parser.add_argument("--resource-pattern-type", default="literal")
    for option in ("--allow-principal", "--operation", "--topic", "--group", "--transactional-id"):
        parser.add_argument(option, action="append", default=[])
    rights = []
    for line in (REPOSITORY / "docs/security.md").read_text(encoding="utf-8").splitlines():
        if not line.startswith("kafka-acls.sh "):
            continue
        given = parser.parse_args(shlex.split(line)[1:])
        pattern = ResourcePatternType[given.resource_pattern_type.upper()]
        resources = [(ResourceType.TOPIC, name) for name in given.topic] + [(ResourceType.GROUP, name) for name in given.group]
        resources += [(ResourceType.TRANSACTIONAL_ID, name) for name in given.transactional_id]
        rights += [
            AclBinding(kind, name, pattern, principal, "*", AclOperation[operation.upper()], AclPermissionType.ALLOW)
            for kind, name in resources
            for principal in given.allow_principal
            for operation in given.operation
        ]
    return rights


def login(broker: KafkaBroker, security: Security, user: str, password: str, **more: object) -> dict[str, object]:
    """Settings, as in the environment, for the door that wants a password."""
    return {
        "BROKER__SERVERS": broker.address,
        "BROKER__SECURITY_PROTOCOL": "SASL_SSL",
        "BROKER__CA_FILE": security.ca,
        "BROKER__SASL_USERNAME": user,
        "BROKER__SASL_PASSWORD": password,
        "TOPICS__PARTITIONS": PARTITIONS,
        **more,
    }


def certificate(broker: KafkaBroker, security: Security) -> dict[str, object]:
    """Settings for the door that wants a certificate."""
    return {
        "BROKER__SERVERS": broker.second_address,
        "BROKER__SECURITY_PROTOCOL": "SSL",
        "BROKER__CA_FILE": security.ca,
        "BROKER__CERTIFICATE_FILE": security.certificate,
        "BROKER__KEY_FILE": security.key,
        "BROKER__KEY_PASSWORD": KEY_PASSWORD,
    }


def searches(folder: Path, name: str, count: int) -> Path:
    file = folder / f"{name}.jsonl"
    events = [
        {"event_id": f"{name}-{n}", "user_id": f"user-{n % 5}", "query": "garden hose", "timestamp": START + n}
        for n in range(count)
    ]
    file.write_text("".join(json.dumps(event) + "\n" for event in events))
    return file


def answered(broker: KafkaBroker, name: str, count: int) -> list[str]:
    """The events of one test that were answered, once there are `count`."""
    deadline = time.monotonic() + 60
    while True:
        messages = read(broker.address, "recommendations", **broker.admin)
        found = [json.loads(message.value())["trigger"]["event_id"] for message in messages]
        found = sorted(event for event in found if event.startswith(name))
        if len(found) >= count or time.monotonic() > deadline:
            return found


def assert_tells_no_secret(text: str) -> None:
    for secret in SECRETS:
        assert secret not in text
        assert base64.b64encode(secret.encode()).decode() not in text


def test_a_worker_and_the_tools_run_through_tls_and_scram_with_the_documented_rights_and_no_others(
    broker: KafkaBroker, security: Security, tiny_model: Path, tmp_path: Path
) -> None:
    worker_settings = login(broker, security, "worker", PASSWORDS["worker"])
    file = searches(tmp_path, "scram", 40)
    sent = command(login(broker, security, "feeder", PASSWORDS["feeder"]), "produce", str(file), "--topic", "searches")
    assert sent.returncode == 0, sent.stderr
    options: dict[str, Any] = {"more": worker_settings, "log_level": "debug", "guarantee": "exactly_once"}
    with running_worker(broker.address, tiny_model, tmp_path, PARTITIONS, **options) as worker:
        assert answered(broker, "scram", 40) == sorted(f"scram-{n}" for n in range(40))
        assert worker.get("/profiles/user-1")["user_id"] == "user-1"
        arguments = Path(f"/proc/{worker.process.pid}/cmdline")
        if arguments.exists():  # what `ps` shows
            assert_tells_no_secret(arguments.read_bytes().decode())
        assert worker.stop() == 0
    with running_worker(broker.address, tiny_model, tmp_path, PARTITIONS, **options) as worker:  # recovery has its own connection
        assert worker.get("/profiles/user-1")["user_id"] == "user-1"
        assert worker.stop() == 0
    log = worker.log.read_text()
    assert "'sasl_password': '**********'" in log
    assert_tells_no_secret(log)
    assert "AUTHORIZATION_FAILED" not in log
    examined = command(worker_settings | {"MODEL__FOLDER": tiny_model, "ENGINE__STATE_FOLDER": tmp_path}, "doctor")
    assert examined.returncode == 0, examined.stdout
    assert "SASL_SSL" in examined.stdout


def test_a_worker_runs_through_mutual_tls(broker: KafkaBroker, security: Security, tiny_model: Path, tmp_path: Path) -> None:
    sent = command(
        login(broker, security, "feeder", PASSWORDS["feeder"]), "produce", str(searches(tmp_path, "mtls", 10)), "-t", "searches"
    )
    assert sent.returncode == 0, sent.stderr
    options: dict[str, Any] = {"more": certificate(broker, security), "guarantee": "exactly_once"}
    with running_worker(broker.second_address, tiny_model, tmp_path, PARTITIONS, **options) as worker:
        assert answered(broker, "mtls", 10) == sorted(f"mtls-{n}" for n in range(10))
        assert worker.stop() == 0
    assert_tells_no_secret(worker.log.read_text())


@pytest.mark.parametrize("arguments", [["worker"], ["produce", "FILE", "--topic", "searches"], ["topics"], ["doctor"]])
def test_a_wrong_password_is_told_by_the_settings_name_and_not_by_its_value(
    broker: KafkaBroker, security: Security, tmp_path: Path, arguments: list[str]
) -> None:
    file = searches(tmp_path, "never", 1)
    settings = login(broker, security, "worker", "not-the-password", ENGINE__STATE_FOLDER=tmp_path)
    done = command(settings, *[str(file) if argument == "FILE" else argument for argument in arguments])
    assert done.returncode == 1
    assert "DRIFTSTREAM_BROKER__SASL_PASSWORD" in done.stdout + done.stderr
    assert "not-the-password" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"BROKER__CA_FILE": "stranger"}, "CA_FILE"),
        ({"BROKER__CA_FILE": "worker.key"}, "CA_FILE"),
        ({"BROKER__KEY_PASSWORD": "not-the-password"}, "KEY_PASSWORD"),
        ({"BROKER__SECURITY_PROTOCOL": "PLAINTEXT"}, "SECURITY_PROTOCOL"),
    ],
)
def test_what_is_wrong_with_tls_is_told_by_the_settings_name(
    broker: KafkaBroker, security: Security, change: dict[str, str], named: str
) -> None:
    files = {"stranger": security.stranger, "worker.key": security.key}
    settings = certificate(broker, security) | {name: files.get(value, value) for name, value in change.items()}
    done = command(settings, "topics")
    assert done.returncode == 1
    assert f"DRIFTSTREAM_BROKER__{named}" in done.stderr
    assert "Traceback" not in done.stderr
    assert "not-the-password" not in done.stderr


def test_a_broker_that_wants_a_certificate_refuses_those_without(broker: KafkaBroker, security: Security) -> None:
    with pytest.raises(BrokerError):
        connect(Broker(servers=broker.second_address, security_protocol="SSL", ca_file=security.ca).librdkafka())


class TokenServer:
    """A server of OAuth tokens that the broker's own unsecured validator accepts, behind TLS. Keeps what it was asked."""

    def __init__(self, certificate: Path) -> None:
        self.asked: list[dict[str, list[str]]] = []
        server = self

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                expected = base64.b64encode(f"worker:{PASSWORDS['worker']}".encode()).decode()
                right = self.headers["Authorization"] == f"Basic {expected}"
                server.asked.append(parse_qs(body))
                answer = {"access_token": _jwt(), "token_type": "Bearer", "expires_in": 300}
                content = json.dumps(answer if right else {"error": "invalid_client"}).encode()
                self.send_response(200 if right else 401)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._http = HTTPServer(("127.0.0.1", 0), Answer)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self._http.server_port}/token"
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def _jwt() -> str:
    now = int(time.time())
    parts = [
        {"alg": "none", "typ": "JWT"},
        {"sub": "worker", "iat": now, "exp": now + 300, "jti": "1", "iss": "test", "aud": "k"},
    ]
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + "."


@pytest.fixture(scope="module")
def tokens(security: Security) -> Iterator[TokenServer]:
    server = TokenServer(security.keystore)
    yield server
    server.close()


async def _topics_by_aiokafka(settings: Broker) -> set[str]:
    options = credentials_to_aiokafka_auth(credentials(settings))
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.servers, **options)
    await consumer.start()
    try:
        return set(await consumer.topics())
    finally:
        await consumer.stop()


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"])
def test_both_clients_log_in_by_every_mechanism(
    broker: KafkaBroker, security: Security, tokens: TokenServer, mechanism: Any
) -> None:
    settings = Broker(
        servers=broker.address,
        security_protocol="SASL_SSL",
        ca_file=security.ca,
        sasl_mechanism=mechanism,
        sasl_username="worker",
        sasl_password=PASSWORDS["worker"],
        oauth_token_url=tokens.url,
        oauth_scope="kafka",
        oauth_ca_file=security.ca,
    )
    admin = connect(settings.librdkafka())
    assert "searches" in admin.list_topics(timeout=10).topics
    asked = len(tokens.asked)
    assert "searches" in asyncio.run(_topics_by_aiokafka(settings))
    if mechanism == "OAUTHBEARER":
        assert len(tokens.asked) == asked + 1, "one token serves all connections"
        assert tokens.asked[0] == tokens.asked[-1] == {"grant_type": ["client_credentials"], "scope": ["kafka"]}


def test_a_refused_client_secret_is_told_by_the_settings_name(
    broker: KafkaBroker, security: Security, tokens: TokenServer
) -> None:
    change = {
        "BROKER__SASL_MECHANISM": "OAUTHBEARER",
        "BROKER__OAUTH_TOKEN_URL": tokens.url,
        "BROKER__OAUTH_CA_FILE": security.ca,
    }
    done = command(login(broker, security, "worker", "not-the-password", **change), "topics")
    assert done.returncode == 1
    assert "DRIFTSTREAM_BROKER__OAUTH_TOKEN_URL" in done.stderr
    assert "not-the-password" not in done.stderr
