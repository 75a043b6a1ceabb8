"""A real Apache Kafka for the tests, without Docker: its jars on Java 17, one KRaft node on loopback.

python tests/kafka/broker.py        starts one, prints its address, and stops it on Ctrl-C
python tests/kafka/broker.py pin    fetches the jars that docker/kafka/pom.xml names, and pins their checksums beside it
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from security import Security

REPOSITORY = Path(__file__).resolve().parents[2]
POM = REPOSITORY / "docker/kafka/pom.xml"
CHECKSUMS = REPOSITORY / "docker/kafka/jars.sha256"
JARS = REPOSITORY / ".kafka/jars"

# Tests come and go quickly: a small heap, and the quick compiler only, which halves the time to boot on two cores.
JVM = ["-Xms256m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]

# As kafka-server-start.sh and kafka-run-class.sh start it: faster than the above after some minutes under load, slower before.
JVM_TO_LAST = ["-Xms1g", "-Xmx1g", "-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20"]
JVM_TO_LAST += ["-XX:InitiatingHeapOccupancyPercent=35", "-XX:+ExplicitGCInvokesConcurrent"]

# After a kill -9 a broker is let in again only when the session of its former self has expired: 9 seconds by default.
PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}
num.partitions=4
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
log.segment.bytes=16777216
"""


class BrokerUnavailableError(Exception):
    """Kafka cannot run on this machine; the message says what is missing."""


class BrokerError(Exception):
    """Kafka was started and failed, or its jars are not the pinned ones."""


class KafkaBroker:
    """A Kafka with its data in `folder`, at the same address for as long as this object lives.

    Args:
        folder: for the data, the configuration and the log; kept when the broker stops.
        security: what to demand of clients; nothing if not given.
        properties: lines of the broker's configuration that win over the usual ones.
        jvm: Java's options.
        boot_timeout: seconds that starting may take.

    Raises:
        BrokerUnavailableError: Java or the jars are missing and cannot be had.
        BrokerError: the jars are not the pinned ones, or Kafka does not start.
    """

    def __init__(
        self,
        folder: Path,
        *,
        security: Security | None = None,
        properties: str = "",
        jvm: Sequence[str] = JVM,
        boot_timeout: float = 90.0,
    ) -> None:
        self._java = [_java(), *jvm, "-Dorg.apache.logging.log4j.level=WARN"]
        self._classpath = f"{jars()}/*"
        self._folder = folder
        self._boot_timeout = boot_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder / "broker.log"
        port, second_port, controller_port = _free_ports(3)
        self.address, self.second_address = f"127.0.0.1:{port}", f"127.0.0.1:{second_port}"
        folder.mkdir(parents=True, exist_ok=True)
        self._properties = folder / "server.properties"
        properties, format_arguments = PROPERTIES + properties, []
        self.admin = {"bootstrap.servers": self.address}
        if security is not None:
            properties += security.properties
            self.admin |= security.admin
            for user, password in security.users.items():
                for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
                    format_arguments += ["--add-scram", f"{mechanism}=[name={user},password={password}]"]
        ports = {"port": port, "second_port": second_port, "controller_port": controller_port}
        self._properties.write_text(properties.format(**ports, data=folder / "data"), encoding="utf-8")
        arguments = [f"--cluster-id={_uuid()}", "--config", str(self._properties), *format_arguments]
        self._run("kafka.tools.StorageTool", "format", *arguments)

    def start(self) -> None:
        """Start, and return when clients are served."""
        if self._process is not None:
            raise BrokerError("the broker is running already")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command("kafka.Kafka"), str(self._properties)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C in the terminal stops the tests, and they stop the broker
            )
        deadline = monotonic() + self._boot_timeout
        try:
            while not self._serves():
                if self._process.poll() is not None:
                    raise BrokerError(f"Kafka ended with {self._process.returncode} while starting:\n{self._tail()}")
                if monotonic() > deadline:
                    raise BrokerError(f"Kafka did not start in {self._boot_timeout:.0f} seconds:\n{self._tail()}")
                sleep(0.05)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Shut down in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End at once, as a crash would: kill -9."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Freeze the process: connections stay open, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after `pause`."""
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        """Shut down in order, and start again on the same data and address."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.kill()  # nobody needs the data any more

    def _command(self, main: str) -> list[str]:
        return [*self._java, "-cp", self._classpath, main]

    def _run(self, main: str, *arguments: str) -> None:
        done = subprocess.run([*self._command(main), *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BrokerError(f"{main} failed:\n{done.stdout}{done.stderr}")

    def _serves(self) -> bool:
        host, _, port = self.address.partition(":")
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            return False
        admin = AdminClient({**self.admin, "log_level": 0})
        try:
            return bool(admin.list_topics(timeout=2).brokers)
        except KafkaException:
            return False

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise BrokerError("the broker is not running")
        self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise BrokerError(f"Kafka did not stop in 30 seconds:\n{self._tail()}") from None
        finally:
            self._process = None

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-40:])


def jars() -> Path:
    """Return the folder of Kafka's jars, fetched by Maven where they are missing, checked against the pinned checksums.

    Raises:
        BrokerUnavailableError: they are missing and Maven is too, or cannot fetch them.
        BrokerError: a checksum differs.
    """
    pinned = {}
    for line in CHECKSUMS.read_text(encoding="ascii").splitlines():
        checksum, name = line.split()
        pinned[name] = checksum
    if _checksums(JARS) != pinned:
        _fetch()
    found = _checksums(JARS)
    if found != pinned:
        names = sorted(name for name in found.keys() | pinned.keys() if found.get(name) != pinned.get(name))
        raise BrokerError(f"{JARS} does not hold what {CHECKSUMS} pins: {', '.join(names)}")
    return JARS


def _checksums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.jar"))}


def _fetch() -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise BrokerUnavailableError(f"Kafka's jars are not in {JARS}, and there is no mvn to fetch them (install maven)")
    JARS.parent.mkdir(parents=True, exist_ok=True)
    # Into a folder of its own first: a fetch that was cut off must not look like a finished one.
    with tempfile.TemporaryDirectory(dir=JARS.parent) as fresh:
        command = [maven, "--quiet", "--batch-mode", "--file", str(POM), "dependency:copy-dependencies"]
        arguments = [f"-DoutputDirectory={fresh}", "-DincludeScope=runtime"]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BrokerUnavailableError(f"Maven could not fetch Kafka's jars:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        shutil.rmtree(JARS, ignore_errors=True)
        JARS.mkdir()
        for jar in Path(fresh).glob("*.jar"):
            jar.rename(JARS / jar.name)


def _java() -> str:
    """Return a Java of version 17 or newer."""
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")
    if java is None:
        raise BrokerUnavailableError("there is no java; Kafka needs Java 17 or newer")
    version = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    major = version.partition('"')[2].partition(".")[0]
    if not major.isdigit() or int(major) < 17:
        raise BrokerUnavailableError(f"{java} is not Java 17 or newer: {version.strip()}")
    return java


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _uuid() -> str:
    """Return a random cluster id in Kafka's form; it may begin with a dash, so name its option with an `=`."""
    return urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


def main() -> None:
    """Run one broker in the foreground, or pin the jars."""
    if sys.argv[1:] == ["pin"]:
        _fetch()
        lines = [f"{checksum}  {name}\n" for name, checksum in _checksums(JARS).items()]
        CHECKSUMS.write_text("".join(lines), encoding="ascii")
        print(f"{len(lines)} jars pinned in {CHECKSUMS}")
        return
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with tempfile.TemporaryDirectory(prefix="kafka-") as folder, KafkaBroker(Path(folder)) as broker:
        print(broker.address, flush=True)
        ended.wait()


if __name__ == "__main__":
    try:
        main()
    except (BrokerUnavailableError, BrokerError) as error:
        sys.exit(str(error))
