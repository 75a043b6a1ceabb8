"""What docker/ says works: its files are sound, and what its services run answers the sample, in the same order without an engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from broker import POM, REPOSITORY
from worker_process import read

from stream import sample
from stream.web import free_port

DOCKERFILE = REPOSITORY / "docker/Dockerfile"
COMPOSE = REPOSITORY / "docker/compose.yaml"
BIN = Path(sys.executable).parent


def compose(profile: str | None) -> dict[str, Any]:
    """The services as Docker Compose itself understands the file; of the default profile, or another one."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COMPOSE_")}
    if profile is not None:
        environment["COMPOSE_PROFILES"] = profile
    line = [str(BIN / "docker-compose"), "--file", str(COMPOSE), "config", "--format", "json"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout)["services"])


def image_environment() -> dict[str, str]:
    """The DRIFTSTREAM_… variables that the image sets."""
    return dict(re.findall(r"^ +(DRIFTSTREAM_\w+)=(\S+)", DOCKERFILE.read_text(), re.MULTILINE))


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = subprocess.run([str(BIN / "hadolint"), str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_everything_runs_without_root_and_with_a_read_only_file_system() -> None:
    assert re.findall(r"^USER (\S+)$", DOCKERFILE.read_text(), re.MULTILINE) == ["10001"]
    for profile in (None, "gpu"):
        for name, service in compose(profile).items():
            assert "user" not in service
            assert name == "kafka" or (service["read_only"] and service["cap_drop"] == ["ALL"]), name


def test_the_workers_of_a_profile_share_nothing_that_must_be_their_own_and_only_loopback_reaches_them() -> None:
    for profile, expected in ((None, ["worker-0", "worker-1"]), ("gpu", ["worker-gpu"])):
        workers = {name: service for name, service in compose(profile).items() if name.startswith("worker")}
        assert list(workers) == expected
        assert len({w["environment"]["DRIFTSTREAM_ENGINE__WORKER_ID"] for w in workers.values()}) == len(workers)
        states = [v["source"] for w in workers.values() for v in w["volumes"] if v["target"] == "/state"]
        assert len(set(states)) == len(workers)
        ports = [port for service in compose(profile).values() for port in service.get("ports", [])]
        assert {port["host_ip"] for port in ports} == {"127.0.0.1"}
        assert len({port["published"] for port in ports}) == len(ports)
    [device] = compose("gpu")["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


def test_it_is_the_kafka_that_the_tests_run_on() -> None:
    version = ElementTree.parse(POM).findtext(".//{*}dependency[{*}artifactId='kafka_2.13']/{*}version")
    assert compose(None)["kafka"]["image"] == f"apache/kafka:{version}"


class Outside:
    """Runs what a service would run, with its environment, outside of a container."""

    def __init__(self, broker: str, folder: Path, model: Path) -> None:
        self._broker = broker
        self._folder = folder
        self._services = compose(None)
        (folder / "models").mkdir()
        shutil.copytree(model, folder / "models/default")

    def start(self, name: str, **settings: object) -> subprocess.Popen[bytes]:
        service = self._services[name]
        paths = {v["target"]: str(self._folder / v["source"]) for v in service.get("volumes", [])}
        environment = {**image_environment(), **service.get("environment", {}), **{k: str(v) for k, v in settings.items()}}
        if "DRIFTSTREAM_BROKER__SERVERS" in environment:
            assert environment["DRIFTSTREAM_BROKER__SERVERS"] == "kafka:9092"
            environment["DRIFTSTREAM_BROKER__SERVERS"] = self._broker
        entrypoint = service["entrypoint"] or [sys.executable, "-m", "stream"]
        line = [*entrypoint, *(service["command"] or ["worker"])]
        for target, path in paths.items():
            environment = {key: value.replace(target, path) for key, value in environment.items()}
            line = [part.replace(f" {target}/", f" {path}/") for part in line]
        path = f"{BIN}:{os.environ['PATH']}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DRIFTSTREAM_")}
        with (self._folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(line, env={**kept, **environment, "PATH": path}, stdout=log, stderr=subprocess.STDOUT)

    def run(self, name: str) -> None:
        assert self.start(name).wait(240) == 0, self.log(name)

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """A worker, from the moment when its health check is content."""
        port = free_port()
        process = self.start(name, DRIFTSTREAM_WEB__PORT=port, DRIFTSTREAM_MODEL__THREADS=1)
        try:
            _, *check = self._services[name]["healthcheck"]["test"]
            check = [sys.executable, *(part.replace("6066", str(port)) for part in check[1:])]
            deadline = time.monotonic() + 120
            while subprocess.run(check, capture_output=True, check=False).returncode:
                assert process.poll() is None, self.log(name)
                assert time.monotonic() < deadline, self.log(name)
                time.sleep(0.2)
            yield
            process.terminate()
            assert process.wait(60) == 0, self.log(name)
        finally:
            process.kill()
            process.wait()

    def log(self, name: str) -> str:
        return f"{name}:\n" + (self._folder / f"{name}.log").read_text(errors="replace")[-3000:]


@pytest.mark.timeout(900)
def test_the_services_run_in_their_order_and_answer_the_whole_sample(own_kafka: Any, model_folder: Path, tmp_path: Path) -> None:
    made = sample.make()
    expected = sorted(event.event_id for event in [*made.searches, *made.clicks])
    outside = Outside(own_kafka.address, tmp_path, model_folder)
    outside.run("topics")
    outside.run("exporter")
    with ExitStack() as stack:
        for name in ("worker-0", "worker-1"):
            stack.enter_context(outside.running(name))
        outside.run("feeder")
        answers = read(own_kafka.address, "recommendations", at_least=len(expected), timeout=300)
        answered = Counter(json.loads(answer.value())["trigger"]["event_id"] for answer in answers)
    assert sorted(answered.elements()) == expected, outside.log("worker-0") + outside.log("worker-1")
