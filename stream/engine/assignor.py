"""Which worker gets which partitions: a partition's events and its users' states always go to the same one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from faust.assignor import PartitionAssignor

log = logging.getLogger("driftstream.assignor")


class AssignmentError(Exception):
    """The group's members do not fit together; the message says what to do."""


class Assignor(PartitionAssignor):
    """Faust's sticky assignor, for which all topics with the same number of partitions are one group.

    By itself Faust makes a group of the topics that the same members subscribe to. A worker that is told to stop while it starts joins
    without the changelog. Events and states were given out separately then, to all members: one got events of a partition and states
    of another, and wrote states that knew nothing of the past. Here who lacks one of the topics gets nothing.
    """

    @classmethod
    def _group_co_subscribed(cls, topics: set[str], subscriptions: Mapping[str, Sequence[str]]) -> Iterable[set[str]]:
        if not any(topics.issubset(subscription) for subscription in subscriptions.values()):
            error = AssignmentError(
                f"no member of the group reads all of {', '.join(sorted(topics))}: its workers have different topics. "
                "Set topics.* to the same for all, or give those with others a broker.group of their own"
            )
            log.critical("Partitions cannot be given out: %s", error)  # aiokafka swallows what is raised here
            raise error
        return [topics]
