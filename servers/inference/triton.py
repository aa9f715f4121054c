"""One connection to Triton: models loaded and probed, tensors through shared memory or inline."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import shared_memory
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from servers.inference.models import probe_of
from servers.platform import telemetry
from servers.platform.server import CHANNEL_OPTIONS
from servers.platform.settings import Settings

Samples = NDArray[np.float32]

CONTROL_SECONDS = 10.0
REGION_PREFIX = "contrafact-"
_RETIRE_AGAIN_SECONDS = 0.1
_RETIRE_AT_MOST = 30.0
_CLOSE_SECONDS = 3.0  # that what was cancelled may take to end


class Region:
    """A piece of /dev/shm that Triton reads its input from and writes its output to."""

    def __init__(self, input_bytes: int, output_bytes: int) -> None:
        self.name = f"{REGION_PREFIX}{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self.input_bytes = input_bytes
        self.output_bytes = output_bytes
        self.memory = shared_memory.SharedMemory(self.name, create=True, size=self.size)
        try:
            _allocate(self.name, self.size)
        except OSError:
            self.unlink()
            raise

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.input_bytes + self.output_bytes

    def array(self, offset: int, shape: tuple[int, ...]) -> Samples:
        """A float32 view of the region; do not keep it beyond the region's life."""
        return np.ndarray(shape, np.float32, buffer=self.memory.buf, offset=offset)

    def unlink(self) -> None:
        """Remove the name and our view; Triton's own view lasts until it unregisters the region."""
        with contextlib.suppress(FileNotFoundError):
            self.memory.unlink()
        with contextlib.suppress(BufferError):  # an array of a cancelled task may still point here
            self.memory.close()


def _allocate(name: str, size: int) -> None:
    """Take the memory now: a region is sparse at first, and touching it when /dev/shm is full would kill us."""
    descriptor = os.open(f"/dev/shm/{name}", os.O_RDWR)
    try:
        os.posix_fallocate(descriptor, 0, size)
    finally:
        os.close(descriptor)


class TritonError(Exception):
    """Triton refused or failed a call. ``status`` is the gRPC status's name, for example UNAVAILABLE."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message

    @property
    def busy(self) -> bool:
        """Whether nothing is wrong but that too many wait: the queue was full, or the wait in it too long."""
        told = self.message.lower()
        if "larger than max" in told:
            return False
        return self.status == "RESOURCE_EXHAUSTED" or "maximum queue size" in told or "request timeout expired" in told


@dataclass(frozen=True, slots=True)
class Question:
    """One request to a model. Arrays and shapes are without the batch axis, which is always 1.

    Attributes:
        model: Name of the model.
        input, samples: Its large input, float32, which may go through shared memory.
        output, shape: Its large output, float32, which may come through shared memory; None: of any shape.
        inline: Small inputs by name.
        others: Names of small outputs.
        parameters: Of the request.
    """

    model: str
    input: str
    samples: Samples
    output: str
    shape: tuple[int, ...] | None = None
    inline: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    others: Sequence[str] = ()
    parameters: Mapping[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered: the large output, and the small ones by name; without the batch axis."""

    samples: Samples
    others: Mapping[str, NDArray[Any]]


@contextlib.contextmanager
def _translated() -> Any:
    try:
        yield
    except InferenceServerException as error:
        status = (error.status() or "UNKNOWN").removeprefix("StatusCode.")
        raise TritonError(status, str(error.message() or "")) from None


class Triton:
    """A client of one Triton server; use it as an asynchronous context manager."""

    def __init__(self, settings: Settings) -> None:
        self._client = InferenceServerClient(settings.triton_url, channel_args=CHANNEL_OPTIONS)
        self._sharing: Literal["auto", "on", "off"] = settings.shared_memory
        self._free: dict[tuple[int, int], list[Region]] = {}
        self._regions: set[Region] = set()
        self._retiring: set[asyncio.Task[None]] = set()
        self._retire_seconds = min(_RETIRE_AT_MOST, settings.segment_timeout_seconds)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._retiring:
            await asyncio.wait(self._retiring, timeout=_CLOSE_SECONDS)
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        for region in list(self._regions):
            await self._remove(region)
        await self._client.close()

    # Models

    async def is_ready(self, model: str) -> bool:
        """Whether Triton says that ``model`` is loaded; its process may be dead all the same."""
        try:
            with _translated():
                return bool(await self._client.is_model_ready(model, client_timeout=CONTROL_SECONDS))
        except TritonError:
            return False

    async def is_changing(self, model: str) -> bool:
        """Whether somebody is having ``model`` loaded or unloaded at this moment."""
        try:
            with _translated():
                index = await self._client.get_model_repository_index(client_timeout=CONTROL_SECONDS)
        except TritonError:
            return False
        return any(known.name == model and known.state in ("LOADING", "UNLOADING") for known in index.models)

    async def answered(self, model: str) -> int:
        """How many requests ``model`` has answered since it was loaded, whoever asked; -1 when that is not known."""
        try:
            with _translated():
                statistics = await self._client.get_inference_statistics(model, client_timeout=CONTROL_SECONDS)
        except TritonError:
            return -1
        return sum(int(item.inference_stats.success.count) for item in statistics.model_stats)

    async def load(self, model: str, timeout: float) -> None:
        """Load ``model``; nothing happens when Triton thinks it is loaded."""
        with _translated():
            await self._client.load_model(model, client_timeout=timeout)

    async def unload(self, model: str, timeout: float) -> None:
        """Unload ``model``, and wait until Triton has let go of it."""
        with _translated():
            await self._client.unload_model(model, client_timeout=CONTROL_SECONDS)
        async with asyncio.timeout(timeout):
            while await self.is_ready(model):
                await asyncio.sleep(0.05)

    async def probe(self, model: str, timeout: float, *, priority: int = 1) -> None:
        """Make the process of ``model`` answer; raises TritonError if it does not.

        Being "ready" proves nothing (a dead model process stays ready), so this is a real inference, of
        one frame that the model answers without computing, by default ahead of everything that waits.
        """
        name, shape = probe_of(model)
        tensor = _inline(name, np.zeros(shape, np.float32))
        with _translated():
            await self._client.infer(
                model, [tensor], client_timeout=timeout, priority=priority, parameters={"probe": True}
            )

    async def parameters(self, model: str) -> dict[str, str]:
        """The parameters in the configuration of ``model``, which must be loaded."""
        with _translated():
            answer = await self._client.get_model_config(model, client_timeout=CONTROL_SECONDS)
        return {name: value.string_value for name, value in answer.config.parameters.items()}

    # Tensors

    @asynccontextmanager
    async def region(self, input_bytes: int, output_bytes: int) -> AsyncIterator[Region | None]:
        """Lend a shared region of these sizes; None: tensors must go inline.

        A region whose use did not end well is not lent again but removed, as soon as Triton has done with it.
        """
        region = await self._take(input_bytes, output_bytes)
        try:
            yield region
        except BaseException:
            if region is not None:
                self._retire(region)
            raise
        if region is not None:
            self._free.setdefault((input_bytes, output_bytes), []).append(region)

    async def _take(self, input_bytes: int, output_bytes: int) -> Region | None:
        if self._sharing == "off":
            return None
        free = self._free.get((input_bytes, output_bytes))
        if free:
            return free.pop()
        try:
            region = Region(input_bytes, output_bytes)
        except OSError as error:
            telemetry.log().warning("no shared memory left, a segment goes inline", error=error.strerror)
            return None
        try:
            await self.register(region)
        except TritonError as error:
            region.unlink()
            # A server on another host, or in a container with its own /dev/shm, cannot open the region.
            if self._sharing == "auto" and error.status in ("INVALID_ARGUMENT", "INTERNAL", "UNKNOWN"):
                telemetry.log().info("shared memory refused, tensors go inline", status=error.status)
                self._sharing = "off"
                return None
            raise
        except BaseException:
            self._retire(region)  # Triton may know it by now
            raise
        self._regions.add(region)
        return region

    async def register(self, region: Region) -> None:
        """Make ``region`` known to Triton; needed again after Triton was restarted."""
        with _translated():
            await self._client.register_system_shared_memory(
                region.name, f"/{region.name}", region.size, client_timeout=CONTROL_SECONDS
            )

    def _retire(self, region: Region) -> None:
        async def later() -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._retire_seconds):
                    await self._until_unused(region)
            await self._remove(region)

        self._regions.add(region)  # removed at the latest when this client is closed
        task = asyncio.create_task(later())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _until_unused(self, region: Region) -> None:
        """Unregister a region, which Triton refuses while a request that it has not ended uses it."""
        while True:
            await asyncio.sleep(_RETIRE_AGAIN_SECONDS)
            try:
                await self._unregister(region)
            except TritonError as error:
                if "in use" in error.message:
                    continue
            return

    async def _unregister(self, region: Region) -> None:
        with _translated():
            await self._client.unregister_system_shared_memory(region.name, client_timeout=CONTROL_SECONDS)

    async def _remove(self, region: Region) -> None:
        self._regions.discard(region)
        region.unlink()
        with contextlib.suppress(TritonError):
            await self._unregister(region)

    async def infer(
        self,
        question: Question,
        *,
        region: Region | None = None,
        priority: int,
        timeout: float,
        request_id: str,
    ) -> Answer:
        """Ask a model.

        Args:
            question: What to ask; its large input is already in ``region`` when there is one.
            region: Where the large input and the large output lie, or None to send them inline.
            priority: 1 overtakes 2 in the server's queue.
            timeout: Seconds that it may wait in the queue, and that it may compute.
            request_id: Put into Triton's log and traces.

        Returns:
            The answer; its large output is a view of ``region`` when there is one, valid until that is given back.
        """
        given = [_inline(name, array) for name, array in question.inline.items()]
        large = InferInput(question.input, [1, *question.samples.shape], "FP32")
        output = InferRequestedOutput(question.output)
        if region is None:
            large.set_data_from_numpy(question.samples[np.newaxis])
        else:
            large.set_shared_memory(region.name, region.input_bytes)
            output.set_shared_memory(region.name, region.output_bytes, offset=region.input_bytes)
        call = partial(
            self._client.infer,
            question.model,
            [large, *given],
            outputs=[output, *(InferRequestedOutput(name) for name in question.others)],
            request_id=request_id,
            priority=priority,
            timeout=int(timeout * 1e6),
            # Longer, so that it is Triton who gives up on what waits, and one knows which of the two it was.
            client_timeout=2 * timeout,
            headers=telemetry.outgoing_headers(),
            parameters=dict(question.parameters) or None,
        )
        try:
            with _translated():
                result = await call()
        except TritonError as error:
            if region is None or "shared memory region" not in error.message:
                raise
            await self.register(region)  # Triton was restarted since
            with _translated():
                result = await call()
        samples = _large_output(result, question, region)
        others = {name: result.as_numpy(name) for name in question.others}
        if samples is None or any(array is None or not array.size for array in others.values()):
            raise TritonError("INTERNAL", f"{question.model} answered with an empty or misshapen tensor")
        return Answer(samples, {name: array[0] for name, array in others.items()})


def _inline(name: str, array: NDArray[Any]) -> InferInput:
    tensor = InferInput(name, [1, *array.shape], np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(np.ascontiguousarray(array[np.newaxis]))
    return tensor


def _large_output(result: Any, question: Question, region: Region | None) -> Samples | None:
    # Asked of every answer: where there is none, the region still holds an older one.
    description = result.get_output(question.output)
    if description is None:
        return None
    shape = tuple(description.shape)[1:]
    if not shape or 0 in shape or question.shape not in (None, shape):
        return None
    if region is not None:
        return region.array(region.input_bytes, shape) if 4 * np.prod(shape) <= region.output_bytes else None
    answer = result.as_numpy(question.output)
    return np.asarray(answer[0], np.float32) if answer is not None and answer.size else None
