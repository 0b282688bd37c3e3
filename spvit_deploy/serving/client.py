"""A model in a running server, asked without waiting for the answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from spvit_deploy.core.errors import InputError, JobError, first_line
from spvit_deploy.serving.tritonclient_import import triton_module

Array = NDArray[Any]
T = TypeVar("T")

# What gRPC says where there was no answer; Triton may say the first one too.
_NO_ANSWER = ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED", "StatusCode.CANCELLED")
_BY_SERVER = "Error received from peer"


class RefusedError(JobError):
    """The server answered a request with an error."""


class LostError(JobError):
    """A request was sent, and no answer came."""


@dataclass(frozen=True)
class Answer:
    """What a server answers.

    Attributes:
        outputs: arrays [B, …] by name.
        version: of the model that answered.
    """

    outputs: dict[str, Array]
    version: str

    @property
    def logits(self) -> Array:
        """Class scores [B, classes]."""
        return self.outputs["logits"]


@dataclass(frozen=True)
class Statistics:
    """What a server counts of a model, all its versions that are loaded.

    Attributes:
        inferences: images answered.
        executions: calls of the model that it took; fewer where requests were batched.
        failed: requests answered with an error.
    """

    inferences: int
    executions: int
    failed: int


class TritonTarget:
    """A model in a Triton server; close it, or use it as a context.

    Requests go out at once, as many as are issued, from a thread of its own.

    Args:
        url: ``http://host:port`` or ``grpc://host:port``.
        model: its name.
        version: one of it; empty for the newest that is served.
        timeout: seconds that an answer may take.

    Attributes:
        input_name, input_type, input_shape: of its one input, as Triton writes them; sizes that
            are free are -1, the batch among them.

    Raises:
        InputError: nobody answers at the URL, or it has no such model, or not with one input.
        RuntimeMissingError: no ``tritonclient``.
    """

    def __init__(self, url: str, model: str, version: str = "", timeout: float = 10.0) -> None:
        scheme, _, self._where = url.rstrip("/").partition("://")
        if scheme not in ("http", "grpc") or not self._where:
            raise InputError(f"'{url}' is no address.", "Write http://host:port or grpc://….")
        self.url, self.model, self._version = url, model, version
        self._scheme, self._timeout = scheme, timeout
        self._kinds, self._aio = triton_module(scheme), triton_module(f"{scheme}.aio")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            self._client = self._await(self._connect())
            self.input_name, self.input_type, self.input_shape = self._only_input()
        except BaseException:
            self.close()
            raise

    def issue(self, images: Array) -> Future[Answer]:
        """Send images [B, C, H, W] as one request, and wait for nothing.

        The future's exception is a :class:`RefusedError` or a :class:`LostError`. Its callbacks
        run in the thread that receives: they must be short.
        """
        return asyncio.run_coroutine_threadsafe(self._infer(images), self._loop)

    def infer(self, images: Array) -> Answer:
        """The same, waiting for the answer.

        Raises:
            RefusedError: the server answered with an error.
            LostError: no answer came.
        """
        return self.issue(images).result()

    def live(self) -> bool:
        """Whether the server answers at all."""
        try:
            return bool(self._await(self._client.is_server_live()))
        except JobError:
            return False

    def statistics(self) -> Statistics:
        """What the server has counted since it loaded the versions that it has.

        Raises:
            JobError: the server does not answer.
        """
        name = {"http": {}, "grpc": {"as_json": True}}[self._scheme]
        found = self._await(self._client.get_inference_statistics(self.model, **name))
        rows = found.get("model_stats", [])
        return Statistics(
            # JSON of protobuf has 64-bit numbers as text, and leaves zeros out.
            inferences=sum(int(row.get("inference_count", 0)) for row in rows),
            executions=sum(int(row.get("execution_count", 0)) for row in rows),
            failed=sum(int(row["inference_stats"]["fail"].get("count", 0)) for row in rows),
        )

    def load(self, timeout: float = 600.0) -> None:
        """Make a server that does not poll look for new versions of the model.

        Args:
            timeout: seconds that it may take.

        Raises:
            RefusedError: it cannot load them; those that it has stay.
            LostError: it does not say that it did.
        """
        self._await(self._client.load_model(self.model), timeout)

    def close(self) -> None:
        """Let go of the connection; what is under way is lost."""
        if hasattr(self, "_client"):
            self._await(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> TritonTarget:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _await(self, work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        said = self._said(work, timeout or self._timeout)
        return asyncio.run_coroutine_threadsafe(said, self._loop).result()

    async def _connect(self) -> Any:
        # Made where the loop runs: aiohttp's sessions belong to it.
        more = {"conn_limit": 0} if self._scheme == "http" else {}
        return self._aio.InferenceServerClient(self._where, **more)

    async def _infer(self, images: Array) -> Answer:
        given = self._kinds.InferInput(self.input_name, list(images.shape), self.input_type)
        given.set_data_from_numpy(images)
        work = self._client.infer(self.model, [given], self._version)
        result = await self._said(work, self._timeout)
        response = result.get_response()
        if self._scheme == "grpc":
            names, version = [output.name for output in response.outputs], response.model_version
        else:
            names = [output["name"] for output in response["outputs"]]
            version = response["model_version"]
        return Answer({name: np.array(result.as_numpy(name)) for name in names}, version)

    async def _said(self, work: Coroutine[Any, Any, T], timeout: float) -> T:
        """Its result; what goes wrong as one of our errors."""
        import aiohttp

        refusal = triton_module("utils").InferenceServerException
        try:
            return await asyncio.wait_for(work, timeout)
        except (asyncio.TimeoutError, TimeoutError):
            raise LostError(f"no answer within {timeout:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise LostError(first_line(error)) from None
        except refusal as error:
            status, details = str(error.status()), str(error.debug_details())
            said = " ".join(str(error.message()).split())
            lost = status in _NO_ANSWER and _BY_SERVER not in details
            raise (LostError if lost else RefusedError)(said) from None

    def _only_input(self) -> tuple[str, str, tuple[int, ...]]:
        more = {"http": {}, "grpc": {"as_json": True}}[self._scheme]
        try:
            found = self._await(self._client.get_model_metadata(self.model, self._version, **more))
        except LostError as error:
            raise InputError(
                f"No Triton server answers at {self.url}: {error.message}.",
                "Start one with `spvit-deploy serve REPO`, or check the address.",
            ) from None
        except RefusedError as error:
            raise InputError(f"{self.url}: {error.message}.", "Check --model.") from None
        if len(found["inputs"]) != 1:
            raise InputError(f"{self.model} has {len(found['inputs'])} inputs, not one.")
        (tensor,) = found["inputs"]
        return tensor["name"], tensor["datatype"], tuple(int(size) for size in tensor["shape"])
