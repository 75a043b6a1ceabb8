"""The topics that a worker needs, and making those that are missing."""

from __future__ import annotations

from dataclasses import dataclass, field

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import NewTopic

from stream.connection import connect
from stream.settings import Settings

DAY_MS = 86_400_000


class TopicError(Exception):
    """A topic is missing and could not be made, or has the wrong number of partitions; the message says what to do."""


@dataclass(frozen=True)
class TopicPlan:
    """A topic as the worker wants it."""

    name: str
    partitions: int
    config: dict[str, str] = field(default_factory=dict)


def plan(settings: Settings) -> list[TopicPlan]:
    """Return every topic that a worker reads or writes."""
    topics, n = settings.topics, settings.topics.partitions
    compact = {"cleanup.policy": "compact"}
    # Every answer is there for a week, as with Kafka's defaults; after that the last one of each user, and nothing of an erased user.
    answers = {
        "cleanup.policy": "compact,delete",
        "retention.ms": str(30 * DAY_MS),
        "min.compaction.lag.ms": str(7 * DAY_MS),
        "max.compaction.lag.ms": str(8 * DAY_MS),
    }
    return [
        TopicPlan(topics.name("searches"), n),
        TopicPlan(topics.name("clicks"), n),
        TopicPlan(topics.name("items"), 1, compact),
        # Not compacted, though it holds nothing but tombstones: they have to wait for a worker as long as the events do.
        TopicPlan(topics.name("erasures"), n),
        TopicPlan(topics.name("recommendations"), n, answers),
        TopicPlan(topics.name("drift"), n, answers),
        # Room for the largest record that another topic lets in, and our headers.
        TopicPlan(topics.name("dead_letters"), 1, {"max.message.bytes": str(16 * 2**20)}),
        # Workers keep the sum on disk; a new one starts from what the topic holds, two months of contributions.
        TopicPlan(topics.name("memory"), 1, {"retention.ms": str(60 * DAY_MS)}),
        TopicPlan(f"{settings.broker.group}-users-changelog", n, compact),
    ]


def ensure(settings: Settings) -> tuple[str, list[str]]:
    """Make the topics that are missing; return the cluster's id, and the names of those made.

    Raises:
        BrokerError: there is no way to the broker.
        TopicError: naming the topic at fault.
    """
    admin = connect(settings.broker.librdkafka())
    cluster = admin.list_topics(timeout=10)
    wanted, present = plan(settings), cluster.topics
    for topic in wanted:
        found = present.get(topic.name)
        if found is not None and len(found.partitions) != topic.partitions and topic.partitions > 1:
            raise TopicError(
                f"topic {topic.name} has {len(found.partitions)} partitions, the settings say {topic.partitions}; "
                "set DRIFTSTREAM_TOPICS__PARTITIONS to what is there (searches, clicks, erasures and the changelog must agree)"
            )
    missing = [topic for topic in wanted if topic.name not in present]
    replication = settings.topics.replication
    made = (
        admin.create_topics([NewTopic(t.name, t.partitions, replication, config=t.config) for t in missing], operation_timeout=30)
        if missing
        else {}
    )
    for name, future in made.items():
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise TopicError(
                    f"topic {name} is missing and could not be made ({error.args[0].str()}); make it, or allow it"
                ) from error
    return str(cluster.cluster_id), [topic.name for topic in missing]
