"""The worker: from events on Kafka to recommendations."""
