"""What the worker counts, for Prometheus: `/metrics` serves it."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram, Info

EVENTS = Counter("driftstream_events", "Records consumed from searches and clicks, rejected ones included.")
OUTPUTS = Counter("driftstream_outputs", "Records published, by topic.", ["topic"])
BATCH_SIZE = Histogram("driftstream_batch_events", "Records in a batch.", buckets=(1, 4, 16, 64, 256, 1024, 4096, 16384, 65536))
PROCESSING = Histogram("driftstream_processing_seconds", "Time to compute a batch's results.")
CHECKPOINT = Histogram("driftstream_checkpoint_seconds", "Time to make a batch's results safe.")
CATALOGUE = Gauge("driftstream_catalogue_items", "Items that can be recommended.")
MODEL = Info("driftstream_model", "The model in use, and what computes it.")
