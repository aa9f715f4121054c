"""What a client does with covers, and with voices that are converted live."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, AsyncIterable
from typing import TYPE_CHECKING, Any

from contrafact import _words
from contrafact._channel import Connection
from contrafact._job import JobHandle
from contrafact._voices import voice_name
from contrafact.v1 import conversion_pb2, cover_pb2, job_pb2
from contrafact.v1.cover_pb2 import Cover
from contrafact.v1.track_pb2 import Track
from contrafact.v1.voice_pb2 import Voice

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from contrafact._live import LiveVoice


def conversion(
    *, semitones: float | str | None, pitch_method: str, **others: Any
) -> conversion_pb2.Conversion:
    """Return how a voice is put in the place of another; what is None is left to the server."""
    key = _words.semitones(semitones)
    others.update({"auto_octave": True} if key == "auto" else {"semitones": key})
    return conversion_pb2.Conversion(pitch_method=_words.pitch_method(pitch_method), **others)


class CoverMethods:
    """The methods of :class:`contrafact.Client` that are about covers and live voices."""

    _connection: Connection

    async def cover(
        self,
        track: Track | str,
        voice: Voice | str,
        *,
        semitones: float | str | None = None,
        index_rate: float | None = None,
        protect: float | None = None,
        rms_mix: float | None = None,
        pitch_method: str = "",
        pitch_smoothing: int = 0,
        speaker: int = 0,
        exact_search: bool = False,
        vocals_gain_db: float = 0.0,
        instrumental_gain_db: float = 0.0,
        match_loudness: bool | None = None,
        true_peak_db: float | None = None,
        format: str = "flac",
        model: str = "",
        priority: str = "interactive",
        request_id: str | None = None,
    ) -> JobHandle:
        """Create a job that makes a cover. Stems and covers that exist are not made again.

        Args:
            track: the track or its resource name.
            voice: the voice that sings it, or its resource name.
            semitones: by how much the pitch is shifted, -24 to 24; "auto": by whole octaves, to where the
                voice is at home; None: not at all.
            index_rate: how much of the voice's retrieval index goes into the result, 0 to 1; None: 0.75.
            protect: how much of retrieval unvoiced sounds get, 0 to 0.5; None: 0.33.
            rms_mix: whose loudness contour the result has, 0 the singer's to 1 the voice's; None: 0.25.
            pitch_method: "rmvpe", "swift-f0" or "pyin"; empty: the best that the server has.
            pitch_smoothing: length of a running median over the pitch, in steps of 10 ms, odd; 0: none.
            speaker: which of the voice's speakers, from 0.
            exact_search: whether the whole index is searched, instead of its nearest list.
            vocals_gain_db: gain of the converted vocals in dB, -60 to 24.
            instrumental_gain_db: gain of the rest of the track in dB, -60 to 24.
            match_loudness: whether the converted vocals are made as loud as the singer was; None: yes.
            true_peak_db: highest true peak of the mix in dBTP, -20 to 0; None: -1.
            format: "flac", "wav", "mp3" or "opus".
            model: the model that separates; empty: the server's default.
            priority: "interactive" when a person is waiting, else "background".
            request_id: a UUID; the same one gives the same job. None: a new one.

        Raises:
            ValueError: a word is not one of those.
        """
        spec = job_pb2.CoverSpec(
            track=track if isinstance(track, str) else track.name,
            voice=voice_name(voice),
            conversion=conversion(
                semitones=semitones,
                index_rate=index_rate,
                protect=protect,
                rms_mix=rms_mix,
                pitch_method=pitch_method,
                pitch_smoothing=pitch_smoothing,
                speaker=speaker,
                exact_search=exact_search,
            ),
            mix=job_pb2.CoverMix(
                vocals_gain_db=vocals_gain_db,
                instrumental_gain_db=instrumental_gain_db,
                match_loudness=match_loudness,
                true_peak_db=true_peak_db,
            ),
            format=_words.audio_format(format),
            model=model,
        )
        request = cover_pb2.CreateCoverRequest(
            request_id=request_id or str(uuid.uuid4()), spec=spec, priority=_words.priority(priority)
        )
        response = await self._connection.unary(self._connection.covers.CreateCover, request)
        return JobHandle(self._connection, response.job)

    async def cover_of(self, name: str) -> Cover:
        """Get one cover by its resource name, "covers/{id}"."""
        request = cover_pb2.GetCoverRequest(name=name)
        return (await self._connection.unary(self._connection.covers.GetCover, request)).cover

    def covers(
        self, *, track: Track | str = "", voice: Voice | str = "", page_size: int = 0
    ) -> AsyncGenerator[Cover, None]:
        """Yield the caller's covers, newest first, asking for page after page.

        Args:
            track: only covers of this track; empty: all.
            voice: only covers with this voice; empty: all.
            page_size: covers to ask for at once, at most 1,000; 0: the server's choice.
        """
        request = cover_pb2.ListCoversRequest(
            page_size=page_size,
            track=track if isinstance(track, str) else track.name,
            voice=voice_name(voice),
        )
        return self._connection.pages(lambda: self._connection.covers.ListCovers, request, "covers")

    async def delete_cover(self, cover: Cover | str) -> None:
        """Delete a cover and its bytes, given it or its resource name."""
        request = cover_pb2.DeleteCoverRequest(name=cover if isinstance(cover, str) else cover.name)
        await self._connection.unary(self._connection.covers.DeleteCover, request)

    def convert_voice(  # noqa: D417  # the others are those of cover
        self,
        voice: Voice | str,
        blocks: AsyncIterable[Buffer],
        sample_rate: int,
        *,
        semitones: float | None = None,
        index_rate: float | None = None,
        protect: float | None = None,
        pitch_method: str = "",
        pitch_smoothing: int = 0,
        speaker: int = 0,
        exact_search: bool = False,
        block_seconds: float = 0.0,
        crossfade_seconds: float = 0.0,
        context_seconds: float = 0.0,
    ) -> LiveVoice:
        """Convert a voice while it speaks or sings; see :class:`contrafact.LiveVoice` for how it is used.

        Args:
            voice: the voice or its resource name.
            blocks: mono float32 audio of any length each, as little-endian bytes or as objects with the
                buffer protocol, for example arrays. No more than about 1 MiB of them is taken ahead. They
                are closed at the end of the stream, if they can be.
            sample_rate: frames per second of what is sent and of what comes back, 8,000 to 96,000 Hz.
            semitones: by how much the pitch is shifted, -24 to 24; None: not at all.
            pitch_method: "rmvpe" or "swift-f0"; empty: the best that the server has.
            block_seconds: length of a block, 0.05 to 2; 0: 0.25. Shorter answers sooner and costs more.
            crossfade_seconds: length of the cross-fade between blocks, 0.01 to 0.1; 0: 0.05.
            context_seconds: how much of the past the model sees, 0.2 to 10; 0: 2.5.
            **others: as for :meth:`cover`.

        Raises:
            ValueError: there is no such pitch method.
        """
        from contrafact._live import LiveVoice

        config = conversion_pb2.ConvertVoiceConfig(
            voice=voice_name(voice),
            sample_rate=sample_rate,
            conversion=conversion(
                semitones=semitones,
                index_rate=index_rate,
                protect=protect,
                pitch_method=pitch_method,
                pitch_smoothing=pitch_smoothing,
                speaker=speaker,
                exact_search=exact_search,
            ),
            block_seconds=block_seconds,
            crossfade_seconds=crossfade_seconds,
            context_seconds=context_seconds,
        )
        return LiveVoice(self._connection, config, blocks)
