"""What recordings sound like, by a network on Triton: blocks in, a vector for each window out."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from servers.inference.asking import RETRY_SECONDS, Asker, InferenceFailed
from servers.inference.keeper import ModelKeeper, ModelUnavailable
from servers.inference.triton import Answer, Question, Triton
from servers.media.blocks import Block
from servers.media.resample import resample
from servers.media.windows import WindowCutter
from servers.platform.settings import Settings
from servers.platform.tasks import Streams

Samples = NDArray[np.float32]

_SILENT = 10 ** (-70 / 20)
_MOST_WINDOWS = 8  # in one question
_MOST_BYTES = 8 << 20  # of windows in one question


@dataclass(frozen=True, slots=True)
class Network:
    """What the model says of itself: see ``about.py`` of the model.

    Attributes:
        name: with its version; vectors of different names do not compare.
        sample_rate: of the windows, in Hz.
        window, hop: in samples.
        dimensions: of a vector.
    """

    name: str
    sample_rate: int
    window: int
    hop: int
    dimensions: int


@dataclass(frozen=True, slots=True)
class Embedded:
    """Some windows of a stream.

    Attributes:
        vectors: float32 ``[n, dimensions]`` of consecutive windows, each of norm 1 or, where there is silence, 0.
        seconds: of the stream that were taken in up to now.
    """

    vectors: Samples
    seconds: float


class Embedder:
    """Embeds streams with one model on Triton; any number at once.

    Attributes:
        name: of the network that embeds.
    """

    def __init__(
        self, triton: Triton, keeper: ModelKeeper, settings: Settings, *, retry_seconds: float = RETRY_SECONDS
    ) -> None:
        self.name = settings.embedding_model
        self._keeper = keeper
        self._asker = Asker(triton, keeper, settings, retry_seconds=retry_seconds)

    async def network(self, *, priority: int, request_id: str, patient: bool = True) -> Network:
        """The network that the model runs, which is loaded if need be.

        Args:
            priority, request_id: as for ``embed``.
            patient: whether to wait for weights that may be on their way.

        Raises:
            ModelUnavailable: It cannot be loaded, or is not the one that is configured.
            InferenceFailed: The model failed again and again.
        """
        await (self._keeper.wait() if patient else self._keeper.ensure_alive())
        _, network = await self._ask(np.zeros((1, 1), np.float32), None, priority, request_id)
        if network.name != self.name:
            raise ModelUnavailable(f"the embedder has the network {network.name}, and {self.name} is configured")
        return network

    async def embed(
        self, network: Network, blocks: AsyncIterable[Block], *, priority: int, request_id: str
    ) -> AsyncGenerator[Embedded, None]:
        """Embed a stream; memory does not grow with its length.

        Args:
            network: what ``network`` has told.
            blocks: consecutive blocks of any rate and channels, of which the mean is embedded. Closing them is the
                caller's business.
            priority: 1 overtakes 2 between questions.
            request_id: Names the stream in Triton's log.

        Yields:
            Each window once, in order, a few at a time: the first begins with the stream, the last is filled up with
            zeros.

        Raises:
            InferenceFailed: The model failed again and again, or another network has taken its place.
            ModelUnavailable: It could not be loaded for a long time.
        """
        at_once = max(1, min(_MOST_WINDOWS, _MOST_BYTES // (4 * network.window)))
        cutter = WindowCutter(network.window, network.hop, at_once)
        number = 0
        async with Streams() as streams:
            mono = await streams.opened(_mono(blocks))
            resampled = await streams.opened(resample(mono, network.sample_rate))
            async for windows, end in await streams.opened(_cut(resampled, cutter)):
                vectors = await self._vectors(network, windows, at_once, priority, f"{request_id}/{number}")
                number += 1
                yield Embedded(vectors, end / network.sample_rate)

    async def _vectors(
        self, network: Network, windows: Samples, at_once: int, priority: int, request_id: str
    ) -> Samples:
        heard = np.abs(windows).max(axis=1) > _SILENT
        vectors = np.zeros((len(windows), network.dimensions), np.float32)
        if heard.any():
            asked = windows[heard]
            # Shared memory of one size is kept: what is smaller goes inline.
            shared = 4 * at_once * network.dimensions if len(asked) == at_once else None
            made, told = await self._ask(asked, shared, priority, request_id)
            if told != network or made.shape != (len(asked), network.dimensions):
                raise InferenceFailed(f"{told.name} answered {list(made.shape)} to {len(asked)} windows")
            vectors[heard] = made / np.maximum(np.linalg.norm(made, axis=1, keepdims=True), 1e-12)
        return vectors

    async def _ask(
        self, windows: Samples, output_bytes: int | None, priority: int, request_id: str
    ) -> tuple[Samples, Network]:
        return await self._asker.ask(
            Question(self._asker.model, "windows", windows, "vectors", others=("about",)),
            _taken,
            output_bytes=output_bytes,
            priority=priority,
            request_id=request_id,
        )


def _taken(answer: Answer) -> tuple[Samples, Network]:
    try:
        network = Network(**json.loads(answer.others["about"].tobytes()))
    except (ValueError, TypeError):
        raise InferenceFailed("what the embedder says of itself cannot be read") from None
    return answer.samples.copy(), network


async def _mono(blocks: AsyncIterable[Block]) -> AsyncGenerator[Block, None]:
    async for block in blocks:
        yield Block(block.samples.mean(axis=0, keepdims=True), block.sample_rate, block.start)


async def _cut(blocks: AsyncIterable[Block], cutter: WindowCutter) -> AsyncGenerator[tuple[Samples, int], None]:
    """Windows, and how many samples were taken in."""
    end = 0
    async for block in blocks:
        end = block.end
        for windows in cutter.process(block.samples[0]):
            yield windows, end
    for windows in cutter.finish():
        yield windows, end
