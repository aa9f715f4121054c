"""ConversionService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Any

import grpc
import numpy as np
from contrafact.v1 import conversion_pb2, conversion_pb2_grpc
from numpy.typing import NDArray

from model_repository.rvc.live import LiveStream
from servers.inference.asking import InferenceFailed, InferenceRefused
from servers.inference.conversion import Converter, VoiceUnavailable
from servers.inference.keeper import ModelUnavailable
from servers.inference.triton import TritonError
from servers.inference.voices import VoiceModel
from servers.orchestrator.api.voices import check_conversion, find_voice
from servers.orchestrator.voices.parameters import completed, model_parameters
from servers.orchestrator.voices.pool import PoolReports
from servers.orchestrator.voices.store import VoiceStore, files_of
from servers.platform import telemetry
from servers.platform.errors import ApiError, invalid, precondition
from servers.platform.interceptors import Context
from servers.platform.settings import Settings
from servers.storage.database import Row

_FLOAT = np.dtype("<f4")
_DEFAULTS = {"block_seconds": 0.25, "crossfade_seconds": 0.05, "context_seconds": 2.5}


class ConversionService(conversion_pb2_grpc.ConversionServiceServicer):
    """Live voices."""

    def __init__(
        self, voices: VoiceStore, reports: PoolReports, model: VoiceModel, converter: Converter, settings: Settings
    ) -> None:
        self._voices = voices
        self._reports = reports
        self._model = model
        self._converter = converter
        self._settings = settings
        self._active = 0

    async def ConvertVoice(
        self, requests: AsyncIterator[conversion_pb2.ConvertVoiceRequest], context: Context
    ) -> AsyncIterator[conversion_pb2.ConvertVoiceResponse]:
        config = await self._next(requests)
        if not isinstance(config, conversion_pb2.ConvertVoiceConfig):
            raise invalid("CONFIG_MISSING", "the first message must be the configuration", "config")
        voice, stream = await self._begin(config)
        if self._active >= self._settings.live_streams:
            message = f"this server converts at most {self._settings.live_streams} live voices at once"
            raise ApiError(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_LIVE_STREAMS", message, retry_after=5)
        self._active += 1
        try:
            yield conversion_pb2.ConvertVoiceResponse(
                started=conversion_pb2.ConvertVoiceStarted(
                    algorithmic_delay_seconds=stream.delay_seconds,
                    block_frames=round(stream.block_seconds * config.sample_rate),
                )
            )
            await self._voices.used(voice["id"])
            with suppress(TritonError):  # else its first block loads it
                await self._model.warm(files_of(voice))
            async with aclosing(self._convert(requests, stream, voice)) as blocks:
                async for audio in blocks:
                    yield conversion_pb2.ConvertVoiceResponse(audio=audio.astype(_FLOAT).tobytes())
        finally:
            self._active -= 1

    async def _begin(self, config: conversion_pb2.ConvertVoiceConfig) -> tuple[Row, LiveStream]:
        """The voice and the stream that are asked for, or a refusal."""
        voice = await find_voice(self._voices, config.voice)
        conversion = completed(config.conversion)
        if conversion.pitch_method == conversion_pb2.PITCH_METHOD_PYIN:
            raise invalid("TOO_SLOW_FOR_LIVE", "pyin is too slow for live voices", "config.conversion.pitch_method")
        await check_conversion(conversion, voice, self._reports, "config.conversion")
        stream = LiveStream(
            config.sample_rate,
            model_parameters(conversion, conversion.semitones),
            rate_out=config.sample_rate,
            **{name: getattr(config, name) or default for name, default in _DEFAULTS.items()},
        )
        return voice, stream

    async def _convert(
        self, requests: AsyncIterator[conversion_pb2.ConvertVoiceRequest], stream: LiveStream, voice: Row
    ) -> AsyncGenerator[NDArray[np.float32], None]:
        """What becomes of the audio that comes, until its end."""
        files, ended = files_of(voice), False
        while not ended:
            payload = await self._next(requests)
            ended = isinstance(payload, conversion_pb2.ConvertVoiceEnd)
            if ended:
                stream.finish()
            else:
                stream.push(_samples(payload))
            while (chunk := await asyncio.to_thread(stream.window)) is not None:
                with _told_to_the_caller():
                    name = f"live/{voice['id']}/{chunk.first}"
                    part = await self._converter.live(chunk, files, priority=1, request_id=name)
                audio = await asyncio.to_thread(stream.take, part.made, part.rate)
                if audio.size:
                    yield audio

    async def _next(self, requests: AsyncIterator[conversion_pb2.ConvertVoiceRequest]) -> Any:
        """The payload of the next message."""
        try:
            async with asyncio.timeout(self._settings.live_idle_seconds):
                request = await anext(requests, None)
        except TimeoutError:
            message = f"nothing was sent for {self._settings.live_idle_seconds:g} s"
            raise ApiError(grpc.StatusCode.DEADLINE_EXCEEDED, "STREAM_IDLE", message) from None
        if request is None:
            raise invalid("END_MISSING", "the stream ended without its end", "end")
        return getattr(request, request.WhichOneof("payload") or "")


def _samples(payload: Any) -> NDArray[np.float32]:
    if not isinstance(payload, bytes):
        raise invalid("CONFIG_REPEATED", "the configuration is sent once", "config")
    if len(payload) % _FLOAT.itemsize:
        raise invalid("BAD_SAMPLES", "audio must be a whole number of 32-bit samples", "audio")
    samples = np.frombuffer(payload, _FLOAT)
    if not np.isfinite(samples).all():
        raise invalid("BAD_SAMPLES", "audio contains NaN or infinity", "audio")
    return samples


@contextmanager
def _told_to_the_caller() -> Iterator[None]:
    try:
        yield
    except InferenceRefused as error:
        telemetry.log().error("inference refused", error=str(error))
        raise precondition("MODEL_REFUSED", "the model does not do what the stream asks for") from error
    except (ModelUnavailable, InferenceFailed) as error:
        telemetry.log().error("model unavailable", error=str(error))  # it names files: not for callers
        raise _unavailable("MODEL_UNAVAILABLE", "the model cannot be used at present") from error
    except VoiceUnavailable as error:
        telemetry.log().error("voice unavailable", reason=error.reason, error=str(error))
        if error.reason == "VOICE_NOT_FOUND":
            raise precondition("VOICE_DELETED", "the voice was deleted") from error
        raise _unavailable("VOICE_UNAVAILABLE", "the voice could not be loaded") from error


def _unavailable(reason: str, message: str) -> ApiError:
    return ApiError(grpc.StatusCode.UNAVAILABLE, reason, message, retry_after=5)
