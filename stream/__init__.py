"""The worker: from events on Kafka to recommendations."""

import os

# The products here are small, one event at a time: a second BLAS thread costs several times what it saves (docs/performance.md).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
