"""What LoadGen drives: how queries are run, and who waits for whom."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Protocol

from spvit_deploy.core.errors import JobError

Call = Callable[[int], None]
Send = Callable[[], "Future[Any]"]


class System(Protocol):
    """What LoadGen drives."""

    def at_work(self) -> AbstractContextManager[None]: ...

    def issue(self, samples: list[Any]) -> None: ...

    def require_whole(self) -> None: ...


class Sent:
    """Every sample is a query to a server, whose answers come in a thread of its client."""

    def __init__(self, lg: Any, send: Send) -> None:
        self._lg, self._send = lg, send
        self._failure: BaseException | None = None
        self._sent = self._failed = 0

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Nothing to start."""
        yield

    def issue(self, samples: list[Any]) -> None:
        """Sent at once; after a failure LoadGen is answered for the rest of its time."""
        for sample in samples:
            if self._failure is not None:
                self._complete(sample)
                continue
            self._sent += 1
            self._send().add_done_callback(partial(self._heard, sample))

    def require_whole(self) -> None:
        """Raise what the first query that failed did, and say how many did."""
        if self._failure is not None:
            said = str(self._failure).rstrip(".")
            raise JobError(f"{self._failed} of {self._sent} queries got no answer: {said}.")

    def _heard(self, sample: Any, found: Future[Any]) -> None:
        error = found.exception()
        self._failed += error is not None
        self._failure = self._failure or error
        self._complete(sample)

    def _complete(self, sample: Any) -> None:
        self._lg.QuerySamplesComplete([self._lg.QuerySampleResponse(sample.id, 0, 0)])


class Direct:
    """A query is run where it is issued: nothing else is under way."""

    def __init__(self, lg: Any, calls: Sequence[Call], batch: int) -> None:
        self._lg, self._calls, self._batch = lg, calls, batch
        self._failure: BaseException | None = None

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Nothing to start."""
        yield

    def issue(self, samples: list[Any]) -> None:
        """All samples, a batch at a time; LoadGen waits for each of them, so none stays away."""
        for start in range(0, len(samples), self._batch):
            some = samples[start : start + self._batch]
            self._run(self._calls[0], len(some))
            self._complete(some)

    def require_whole(self) -> None:
        """Raise what a call raised."""
        if self._failure is not None:
            raise self._failure

    def _run(self, call: Call, images: int) -> None:
        """One that fails ends the work, and LoadGen is answered for the rest of its time."""
        if self._failure is None:
            try:
                call(images)
            except BaseException as error:
                self._failure = error

    def _complete(self, samples: Sequence[Any]) -> None:
        response = self._lg.QuerySampleResponse
        self._lg.QuerySamplesComplete([response(sample.id, 0, 0) for sample in samples])


class Queued(Direct):
    """Samples wait until a worker is free, who takes as many as a batch holds."""

    def __init__(self, lg: Any, calls: Sequence[Call], batch: int) -> None:
        super().__init__(lg, calls, batch)
        self._waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Workers, one for each call."""
        workers = [threading.Thread(target=self._work, args=(call,)) for call in self._calls]
        for worker in workers:
            worker.start()
        try:
            yield
        finally:
            for _ in workers:
                self._waiting.put(None)
            for worker in workers:
                worker.join()

    def issue(self, samples: list[Any]) -> None:
        """Samples, when they are due."""
        for sample in samples:
            self._waiting.put(sample)

    def _work(self, call: Call) -> None:
        while (first := self._waiting.get()) is not None:
            some = [first, *self._more()]
            self._run(call, len(some))
            self._complete(some)

    def _more(self) -> Iterator[Any]:
        for _ in range(self._batch - 1):
            try:
                sample = self._waiting.get_nowait()
            except queue.Empty:
                return
            if sample is None:
                self._waiting.put(None)
                return
            yield sample
