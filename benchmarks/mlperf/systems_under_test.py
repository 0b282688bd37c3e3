"""Systems under test that MLPerf LoadGen drives: sessions in this process, or a server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any

# Runs so many images, and returns when they are done.
Call = Callable[[int], None]
# Sends one request without waiting; None where no more can be sent.
Send = Callable[[], "Future[Any] | None"]


class SystemUnderTest:
    """Completes every LoadGen sample, also after a failure: LoadGen waits for all of them.

    Args:
        lg: The module ``mlperf_loadgen``.
    """

    def __init__(self, lg: Any) -> None:
        self._lg = lg

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run what processes the samples; raise at the end what failed."""
        yield

    def issue(self, samples: list[Any]) -> None:
        """Take the samples of one query when it is due."""
        raise NotImplementedError

    def flush(self) -> None:
        """Finish what is left after the last query."""

    def complete(self, samples: Sequence[Any]) -> None:
        """Report samples to LoadGen as completed, which ends their latency."""
        response = self._lg.QuerySampleResponse
        self._lg.QuerySamplesComplete([response(sample.id, 0, 0) for sample in samples])


class RemoteSystem(SystemUnderTest):
    """Sends each sample to a server; responses arrive in a thread of its client.

    Samples that cannot be sent stay outstanding, so that LoadGen ends early with too many of them.
    """

    def __init__(self, lg: Any, send: Send) -> None:
        super().__init__(lg)
        self._send = send
        self._unsent: list[Any] = []

    def issue(self, samples: list[Any]) -> None:
        """Send each sample without waiting for its response."""
        for sample in samples:
            future = self._send()
            if future is None:
                self._unsent.append(sample)
            else:
                future.add_done_callback(partial(self._received, sample))

    def flush(self) -> None:
        """Complete the samples that were not sent."""
        self.complete(self._unsent)

    def _received(self, sample: Any, _: Future[Any]) -> None:
        self.complete([sample])


class InlineSystem(SystemUnderTest):
    """Runs each query in LoadGen's own thread, one batch after another."""

    def __init__(self, lg: Any, calls: Sequence[Call], batch: int) -> None:
        super().__init__(lg)
        self._calls, self._batch = calls, batch
        self._failure: BaseException | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Raise at the end what the first call that failed raised."""
        yield
        if self._failure is not None:
            raise self._failure

    def issue(self, samples: list[Any]) -> None:
        """Run all samples of a query, a batch at a time."""
        for start in range(0, len(samples), self._batch):
            self.run(self._calls[0], samples[start : start + self._batch])

    def run(self, call: Call, samples: Sequence[Any]) -> None:
        """Run one batch and complete it; after a failure only complete it."""
        if self._failure is None:
            try:
                call(len(samples))
            except BaseException as error:
                self._failure = error
        self.complete(samples)


class QueuedSystem(InlineSystem):
    """Queues samples for worker threads; each takes as many as fit into a batch."""

    def __init__(self, lg: Any, calls: Sequence[Call], batch: int) -> None:
        super().__init__(lg, calls, batch)
        self._waiting: list[Any] = []
        self._changed = threading.Condition()
        self._ended = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run one worker thread per call."""
        workers = [threading.Thread(target=self._work, args=(call,)) for call in self._calls]
        with super().running():
            for worker in workers:
                worker.start()
            try:
                yield
            finally:
                self._ended = True
                self.issue([])
                for worker in workers:
                    worker.join()

    def issue(self, samples: list[Any]) -> None:
        """Queue the samples."""
        with self._changed:
            self._waiting += samples
            self._changed.notify_all()

    def _work(self, call: Call) -> None:
        while batch := self._next():
            self.run(call, batch)

    def _next(self) -> list[Any]:
        """Wait for samples and take a batch of them; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended)
            batch, self._waiting = self._waiting[: self._batch], self._waiting[self._batch :]
        return batch
