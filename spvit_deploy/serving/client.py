"""Triton's own Python client, an optional package, and a client of a model in a server."""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from spvit_deploy.core.arrays import Array
from spvit_deploy.core.errors import InputError, JobError, RuntimeMissingError, first_line

T = TypeVar("T")

# What gRPC reports without a response; Triton may report the first one too.
_NO_RESPONSE = ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED", "StatusCode.CANCELLED")
_BY_SERVER = "Error received from peer"


def import_tritonclient(module: str) -> Any:
    """Import a module of ``tritonclient``, such as ``grpc.aio``.

    Raises:
        RuntimeMissingError: It is not installed, or without what this module needs.
    """
    try:
        return importlib.import_module(f"tritonclient.{module}")
    except (ImportError, RuntimeError):  # the latter is its own, without gRPC or HTTP
        raise RuntimeMissingError(
            f"Triton needs tritonclient with {module.partition('.')[0]}, which is not installed.",
            "pip install 'spvit-deploy[triton]'",
        ) from None


class RefusedError(JobError):
    """The server answered a request with an error."""


class LostError(JobError):
    """A request was sent, and no response came."""


@dataclass(frozen=True)
class InferenceResult:
    """Response of a server: arrays [batch, …] by name, and the version that computed them."""

    outputs: dict[str, Array]
    version: str

    @property
    def logits(self) -> Array:
        """Class scores [batch, classes]."""
        return self.outputs["logits"]


@dataclass(frozen=True)
class Statistics:
    """A server's counts for a model, over all versions that are loaded: images that were inferred,
    executions that they took (fewer where requests were batched), and requests that failed.
    """

    inferences: int
    executions: int
    failed: int


class TritonClient:
    """Client of one model in a Triton server. Close it, or use it as a context manager.

    Requests are sent at once, in a thread of the client's own.

    Args:
        url: ``http://host:port`` or ``grpc://host:port``.
        version: Of the model; empty for the newest that is served.
        timeout: Seconds that a response may take.

    Attributes:
        input_name, input_type, input_shape: Of the model's only input, as Triton names them; free
            sizes are -1, also the batch.

    Raises:
        InputError: There is no server at the URL, or no such model, or it has several inputs.
    """

    def __init__(self, url: str, model: str, version: str = "", timeout: float = 10.0) -> None:
        scheme, _, self._address = url.rstrip("/").partition("://")
        if scheme not in ("http", "grpc") or not self._address:
            raise InputError(
                f"{url}: not an address of a server.", "Use http://HOST:PORT or grpc://HOST:PORT."
            )
        self.url, self.model, self.timeout = url, model, timeout
        self._version, self._scheme = version, scheme
        self._as_json: dict[str, Any] = {"as_json": True} if scheme == "grpc" else {}
        self._module = import_tritonclient(scheme)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            self._client = self._await(self._connect())
            self.input_name, self.input_type, self.input_shape = self._only_input()
        except BaseException:
            self.close()
            raise

    def infer_async(self, images: Array) -> Future[InferenceResult]:
        """Send images [batch, channels, height, width] as one request, without waiting.

        The future's exception is a :class:`RefusedError` or a :class:`LostError`. Its callbacks
        run in the thread that receives, and must be short.
        """
        return asyncio.run_coroutine_threadsafe(self._infer(images), self._loop)

    def infer(self, images: Array) -> InferenceResult:
        """Send images [batch, channels, height, width] as one request, and wait for the response;
        errors as :meth:`infer_async`.
        """
        return self.infer_async(images).result()

    def is_live(self) -> bool:
        """Check whether the server responds at all."""
        try:
            return bool(self._await(self._client.is_server_live()))
        except JobError:
            return False

    def statistics(self) -> Statistics:
        """Read the server's counts since it loaded the model's versions."""
        request = self._client.get_inference_statistics(self.model, **self._as_json)
        rows = self._await(request).get("model_stats", [])
        return Statistics(
            # JSON of protobuf has 64-bit numbers as text, and leaves zeros out.
            inferences=sum(int(row.get("inference_count", 0)) for row in rows),
            executions=sum(int(row.get("execution_count", 0)) for row in rows),
            failed=sum(int(row["inference_stats"]["fail"].get("count", 0)) for row in rows),
        )

    def close(self) -> None:
        """Close the connection; outstanding requests are lost."""
        if hasattr(self, "_client"):
            self._await(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> TritonClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(self._checked(work), self._loop).result()

    async def _connect(self) -> Any:
        # Made where the loop runs: aiohttp's sessions belong to it.
        unlimited = {"conn_limit": 0} if self._scheme == "http" else {}
        module = import_tritonclient(f"{self._scheme}.aio")
        return module.InferenceServerClient(self._address, **unlimited)

    async def _infer(self, images: Array) -> InferenceResult:
        tensor = self._module.InferInput(self.input_name, list(images.shape), self.input_type)
        tensor.set_data_from_numpy(images)
        work = self._client.infer(self.model, [tensor], self._version)
        result = await self._checked(work)
        response = result.get_response()
        if self._scheme == "grpc":
            names, version = [output.name for output in response.outputs], response.model_version
        else:
            names = [output["name"] for output in response["outputs"]]
            version = response["model_version"]
        return InferenceResult({name: np.array(result.as_numpy(name)) for name in names}, version)

    async def _checked(self, work: Coroutine[Any, Any, T]) -> T:
        """Await with a timeout, and raise client errors as :class:`LostError` or RefusedError."""
        import aiohttp

        server_error = import_tritonclient("utils").InferenceServerException
        try:
            return await asyncio.wait_for(work, self.timeout)
        except (asyncio.TimeoutError, TimeoutError):
            raise LostError(f"no response within {self.timeout:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise LostError(first_line(error)) from None
        except server_error as error:
            status, details = str(error.status()), str(error.debug_details())
            lost = status in _NO_RESPONSE and _BY_SERVER not in details
            kind = LostError if lost else RefusedError
            raise kind(" ".join(str(error.message()).split())) from None

    def _only_input(self) -> tuple[str, str, tuple[int, ...]]:
        request = self._client.get_model_metadata(self.model, self._version, **self._as_json)
        try:
            inputs = self._await(request)["inputs"]
        except LostError as error:
            raise InputError(
                f"No Triton server responds at {self.url}: {error.message}.",
                "Start one with `spvit-deploy serve REPO`, or check the address.",
            ) from None
        except RefusedError as error:
            raise InputError(f"{self.url}: {error.message}.", "Check --model.") from None
        if len(inputs) != 1:
            raise InputError(f"--model {self.model}: {len(inputs)} inputs, expected one.")
        (tensor,) = inputs
        return tensor["name"], tensor["datatype"], tuple(int(size) for size in tensor["shape"])
