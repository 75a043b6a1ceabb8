"""Encoding what will be wanted soon, beside everything else."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from queue import Empty, SimpleQueue

from stream.encoder import Encoder

log = logging.getLogger("driftstream.encoder")

MOST = 256  # texts encoded at once: enough for full speed, and what is wanted at once waits no longer for them than for its own


class Ahead:
    """A thread that encodes texts before they are wanted: then they are in the encoder's cache.

    What comes out is the same with and without it, since a text's vector does not depend on what else is encoded.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._texts = SimpleQueue[str]()
        threading.Thread(target=self._run, name="encode-ahead", daemon=True).start()

    def want(self, texts: Iterable[str]) -> None:
        """Say what will be wanted; the first first."""
        for text in texts:
            if text not in self._encoder:
                self._texts.put(text)

    def _run(self) -> None:
        while True:
            texts = [self._texts.get()]
            try:
                while len(texts) < MOST:
                    texts.append(self._texts.get_nowait())
            except Empty:
                pass
            try:
                self._encoder.encode(texts)
            except Exception:  # it comes again where the texts are wanted, and is dealt with there
                log.warning("%d texts could not be encoded ahead of time", len(texts), exc_info=True)
