"""What a client does with voices and the pool of those that are loaded."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterable
from datetime import timedelta
from pathlib import Path

from contrafact import _words
from contrafact._channel import Connection
from contrafact._download import download_sample
from contrafact._import import Pitches, import_files, import_spec, pitches, send_import
from contrafact._send import ByteProgress
from contrafact._source import Uploadable
from contrafact.v1 import voice_pb2, voice_pool_pb2
from contrafact.v1.voice_pb2 import Voice


class VoiceMethods:
    """The methods of :class:`contrafact.Client` that are about voices."""

    _connection: Connection

    async def import_voice(
        self,
        weights: Uploadable,
        index: Uploadable | None = None,
        sample: Uploadable | None = None,
        *,
        display_name: str,
        language: str = "",
        tags: Iterable[str] = (),
        licence: str = "",
        pitch_range: Pitches | None = None,
        progress: ByteProgress | None = None,
        request_id: str | None = None,
    ) -> Voice:
        """Import an RVC voice from its files.

        Whenever the connection breaks they are sent again from the beginning, by default up to 7 times.

        Args:
            weights: the model, ".pth": a path; a file open for reading in binary; or bytes.
            index: its retrieval index, ".index", if it has one.
            sample: a recording of the voice, in any format that tracks may have.
            display_name: what to call it, 1 to 255 characters.
            language: BCP 47 tag of the language it sings, for example "en".
            tags: words to find it by, at most 32 of at most 64 characters.
            licence: under which terms it may be used, at most 1,000 characters.
            pitch_range: its register, (low, median, high) in Hz; None: that of the sample, if there is one.
            progress: called with bytes sent and bytes in all (None: unknown), at every 512 KiB.
            request_id: a UUID; the same one gives the same voice. None: a new one.

        Raises:
            InvalidArgument: a file is no such file, or the voice cannot sing; ``reason`` says which.
            OSError: a file cannot be read.
            ValueError: a file is empty, or the pitch range is none.
        """
        spec = import_spec(display_name, language, tags, licence, pitch_range, request_id)
        return await import_files(self._connection, spec, weights, index, sample, progress)

    async def import_voice_objects(  # noqa: D417  # the others are those of import_voice
        self,
        weights: str,
        index: str = "",
        *,
        display_name: str,
        language: str = "",
        tags: Iterable[str] = (),
        licence: str = "",
        pitch_range: Pitches | None = None,
        weights_sha256: str = "",
        index_sha256: str = "",
        request_id: str | None = None,
    ) -> Voice:
        """Import an RVC voice from objects that are in the server's store already, below "imports/".

        Args:
            weights: key of the model, for example "imports/anna.pth".
            index: key of its retrieval index; empty: it has none.
            weights_sha256: SHA-256 of the model, if known; other bytes are refused.
            index_sha256: that of the index.
            **others: as for :meth:`import_voice`.

        Raises:
            InvalidArgument: an object is no such file, or the voice cannot sing; ``reason`` says which.
        """
        spec = import_spec(display_name, language, tags, licence, pitch_range, request_id)
        spec.weights_object, spec.index_object = weights, index
        spec.weights_sha256, spec.index_sha256 = weights_sha256, index_sha256
        return await send_import(self._connection, spec)

    async def voice(self, name: str) -> Voice:
        """Get one voice by its resource name, "voices/{id}"."""
        request = voice_pb2.GetVoiceRequest(name=name)
        return (await self._connection.unary(self._connection.voices.GetVoice, request)).voice

    def voices(
        self,
        *,
        display_name_contains: str = "",
        tags: Iterable[str] = (),
        language: str = "",
        page_size: int = 0,
    ) -> AsyncGenerator[Voice, None]:
        """Yield the caller's voices, newest first, asking for page after page.

        Args:
            display_name_contains: only voices whose display name contains this, ignoring case.
            tags: only voices with all of these.
            language: only voices of this language.
            page_size: voices to ask for at once, at most 1,000; 0: the server's choice.
        """
        request = voice_pb2.ListVoicesRequest(
            page_size=page_size, display_name_contains=display_name_contains, tags=tags, language=language
        )
        return self._connection.pages(lambda: self._connection.voices.ListVoices, request, "voices")

    async def update_voice(  # noqa: D417  # the others are those of import_voice
        self,
        voice: Voice | str,
        *,
        display_name: str | None = None,
        language: str | None = None,
        tags: Iterable[str] | None = None,
        licence: str | None = None,
        pitch_range: Pitches | None = None,
    ) -> Voice:
        """Change what is said about a voice; what is None stays as it is.

        Args:
            voice: the voice or its resource name.
            pitch_range: its register, (low, median, high) in Hz; an empty tuple: it is not known.
            **others: as for :meth:`import_voice`.

        Raises:
            ValueError: nothing is given, or the pitch range is none.
        """
        wanted = Voice(name=voice_name(voice))
        mask = []
        for field, value in {"display_name": display_name, "language": language, "licence": licence}.items():
            if value is not None:
                setattr(wanted, field, value)
                mask.append(field)
        if tags is not None:
            wanted.tags.extend(tags)
            mask.append("tags")
        if pitch_range is not None:
            if not isinstance(pitch_range, tuple) or pitch_range:
                wanted.pitch_range.CopyFrom(pitches(pitch_range))
            mask.append("pitch_range")
        if not mask:
            raise ValueError("nothing to change")
        request = voice_pb2.UpdateVoiceRequest(voice=wanted)
        request.update_mask.paths.extend(mask)
        return (await self._connection.unary(self._connection.voices.UpdateVoice, request)).voice

    async def delete_voice(self, voice: Voice | str, *, cancel_jobs: bool = False) -> None:
        """Delete a voice and its files, wherever they are. Covers that were made with it stay.

        Args:
            voice: the voice or its resource name.
            cancel_jobs: cancel the unfinished jobs that use it instead of raising FailedPrecondition.
        """
        request = voice_pb2.DeleteVoiceRequest(name=voice_name(voice), cancel_jobs=cancel_jobs)
        await self._connection.unary(self._connection.voices.DeleteVoice, request)

    async def warm_voice(self, voice: Voice | str) -> Voice:
        """Begin to load a voice, so that the next use of it need not wait. Returns it as it is now."""
        request = voice_pb2.WarmVoiceRequest(name=voice_name(voice))
        return (await self._connection.unary(self._connection.voices.WarmVoice, request)).voice

    async def download_voice_sample(
        self,
        voice: Voice | str,
        path: str | os.PathLike[str],
        *,
        progress: ByteProgress | None = None,
    ) -> Path:
        """Download the sample of a voice as it was imported, going on where it broke off.

        Args:
            voice: the voice or its resource name.
            path: where to; a folder that exists, or ends in a slash: there, under the display name.
            progress: called with bytes received, and None: how many there are is not known.

        Raises:
            NotFound: the voice has no sample.
            DataLoss: bytes arrived damaged; no file is left.
        """
        found = await self.voice(voice) if isinstance(voice, str) else voice
        return await download_sample(self._connection, found, path, progress)

    async def voice_pool(self) -> voice_pool_pb2.VoicePool:
        """Get the voice pool: its settings, and which voices are loaded. For administrators."""
        request = voice_pool_pb2.GetVoicePoolRequest()
        return (await self._connection.unary(self._connection.voice_pool.GetVoicePool, request)).pool

    async def update_voice_pool(
        self,
        *,
        enabled: bool | None = None,
        capacity: int | None = None,
        idle_ttl: float | timedelta | None = None,
        strategy: str | None = None,
        prewarm: int | None = None,
    ) -> voice_pool_pb2.VoicePool:
        """Change the settings of the voice pool, for good; what is None stays as it is. For administrators.

        Args:
            enabled: whether voices stay loaded.
            capacity: most voices in the pool, 1 to 1,000.
            idle_ttl: a voice that was not used for so long leaves: seconds or a timedelta, up to 7 days.
            strategy: which voice leaves a full pool: "lru", "ttl" or "lru+lfu".
            prewarm: how many of the latest voices are loaded when the model starts, 0 to 100.

        Raises:
            ValueError: nothing is given, or the strategy is not one of those.
        """
        settings = voice_pool_pb2.PoolSettings()
        mask = []
        for field, value in {"enabled": enabled, "capacity": capacity, "prewarm": prewarm}.items():
            if value is not None:
                setattr(settings, field, value)
                mask.append(field)
        if idle_ttl is not None:
            settings.idle_ttl.FromTimedelta(
                idle_ttl if isinstance(idle_ttl, timedelta) else timedelta(seconds=idle_ttl)
            )
            mask.append("idle_ttl")
        if strategy is not None:
            settings.strategy = _words.strategy(strategy)
            mask.append("strategy")
        if not mask:
            raise ValueError("nothing to change")
        request = voice_pool_pb2.UpdateVoicePoolRequest(settings=settings)
        request.update_mask.paths.extend(mask)
        return (await self._connection.unary(self._connection.voice_pool.UpdateVoicePool, request)).pool


def voice_name(voice: Voice | str) -> str:
    """Return the resource name of a voice, given it or the voice."""
    return voice if isinstance(voice, str) else voice.name
