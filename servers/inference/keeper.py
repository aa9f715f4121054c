"""Keeps models loaded and alive.

Triton goes on calling a model ready after its process has died, fails every later call and restarts
nothing (triton-inference-server/server #8604). Only unloading and loading again helps, so that is done
whenever a real probe fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time

from servers.inference.triton import Triton, TritonError
from servers.platform import telemetry
from servers.platform.settings import Settings
from servers.platform.tasks import Background

PROBE_SECONDS = 15.0  # for so long an answer of any kind is proof of life, and
PROBE_TIMEOUT = 30.0  # so long an answer may take: behind a running segment on a slow CPU
_AGAIN_SECONDS = 0.5


class ModelUnavailable(Exception):
    """The model cannot be loaded; the message says why."""


class ModelKeeper(Background):
    """Loads one model when it is first needed and watches over it while used as a context manager."""

    def __init__(
        self,
        triton: Triton,
        model: str,
        settings: Settings,
        *,
        probe_seconds: float = PROBE_SECONDS,
        probe_timeout: float = PROBE_TIMEOUT,
    ) -> None:
        self.model = model
        self._triton = triton
        self._probe_seconds = probe_seconds
        self._probe_timeout = probe_timeout
        self._trusted_until = 0.0  # on the monotonic clock
        self._load_timeout = settings.model_load_timeout_seconds
        self._lock = asyncio.Lock()

    def answered(self) -> None:
        """Take note that the model has just answered somebody."""
        self._trusted_until = time.monotonic() + self._probe_seconds

    async def ensure_alive(self) -> None:
        """Return at once if the model answered a short while ago, else as ``check``."""
        if time.monotonic() >= self._trusted_until:
            await self.check()

    async def check(self) -> None:
        """Return once the model's process has answered a probe, loading or reloading it if need be.

        Raises:
            ModelUnavailable: It cannot be loaded.
        """
        async with self._lock:  # one repairs, the others wait and find it done
            try:
                await self._until_settled()
                if await self._triton.is_ready(self.model):
                    # Twice, the second time a little later: another worker may be about to reload the model.
                    for pause in (random.uniform(0.1, 0.5), 0.0):
                        if await self._answers():
                            self.answered()
                            return
                        await asyncio.sleep(pause)
                        await self._until_settled()
                    telemetry.MODEL_RECOVERIES.labels(self.model).inc()
                    telemetry.log().warning("model process is dead, reloading", model=self.model)
                    await self._triton.unload(self.model, self._load_timeout)
                await self._triton.load(self.model, self._load_timeout)
                await self._triton.probe(self.model, PROBE_TIMEOUT)
                self.answered()
                telemetry.log().info("model loaded", model=self.model)
            except (TritonError, TimeoutError) as error:
                raise ModelUnavailable(_first_line(error)) from error

    async def wait(self, *, check: bool = False) -> None:
        """As ``ensure_alive`` (or ``check``), and patient: weights may be on their way, Triton may be restarting.

        Raises:
            ModelUnavailable: It could not be loaded within ``model_load_timeout_seconds``.
        """
        last = ModelUnavailable("the model did not answer")
        try:
            async with asyncio.timeout(self._load_timeout):
                while True:
                    try:
                        return await (self.check() if check else self.ensure_alive())
                    except ModelUnavailable as error:
                        last = error
                        await asyncio.sleep(_AGAIN_SECONDS)
        except TimeoutError:
            raise last from None

    async def _until_settled(self) -> None:
        """Wait while another worker has the model loaded: asked again, Triton would load it once more."""
        began = time.monotonic()
        while await self._triton.is_changing(self.model) and time.monotonic() - began < self._load_timeout:
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _answers(self) -> bool:
        answered = await self._triton.answered(self.model)
        try:
            await self._triton.probe(self.model, self._probe_timeout)
        except TritonError as error:
            # Busy is not dead: a full queue refuses at once, and a long one may let the probe time out while
            # others are answered. A process that answers nobody hangs.
            if error.status == "DEADLINE_EXCEEDED":
                return await self._triton.answered(self.model) > answered
            return error.busy
        return True

    async def _work(self) -> None:
        while True:
            with contextlib.suppress(ModelUnavailable):
                await self.ensure_alive()
            await asyncio.sleep(self._probe_seconds)


def _first_line(error: BaseException) -> str:
    text = error.message if isinstance(error, TritonError) else (str(error) or type(error).__name__)
    # What a model says by itself comes before the place where it did; a Python traceback ends with what matters.
    lines = [line for line in text.partition("\nAt:\n")[0].splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
