"""The voice pool of one model process: which voices are warm. Identity lives elsewhere.

Nobody waits here: who asks for a cold voice is told to ask again, and background threads load it. So a cold voice never
holds up a warm one. What was loaded stays until it was used once, or for some seconds: otherwise many voices in a small
pool would push each other out before those who asked come back, and nobody would get anything.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

from .loader import Key, VoiceLoading, VoiceRefused
from .residents import STRATEGIES, Counters, Entry, PoolSettings, Sized

V = TypeVar("V", bound=Sized)


@dataclass
class _State(Generic[V]):
    """All that changes, guarded by the pool's condition."""

    warm: OrderedDict[Key, Entry[V]] = field(default_factory=OrderedDict)  # the least recently used first
    queued: dict[Key, bool] = field(default_factory=dict)  # the oldest first; True: a person waits for it
    loading: dict[Key, bool] = field(default_factory=dict)  # False: its result is no longer wanted
    failures: dict[Key, tuple[Exception, float]] = field(default_factory=dict)
    closed: bool = False


class Pool(Generic[V]):
    """Voices by key, loaded by threads of its own. Any thread may call its methods; none but `close` waits.

    Args:
        load: makes a voice; called by the threads.
        settings: see there; `configure` changes them.
        loaders: threads, and so most loads at once.
        queue: most voices that may wait to be loaded.
        pin_seconds: for which a voice that was loaded and not yet used may not leave.
        failure_seconds: for which a failure to load is told before it is forgotten.
        clock: seconds.
    """

    def __init__(
        self,
        load: Callable[[Key], V],
        settings: PoolSettings | None = None,
        *,
        loaders: int = 1,
        queue: int = 64,
        pin_seconds: float = 10.0,
        failure_seconds: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if loaders < 1 or queue < 1:
            raise ValueError("a pool needs at least one loader and one place to wait for it")
        self.process = str(uuid.uuid4())
        self.settings = settings or PoolSettings()
        self.counters = Counters()
        self._load, self._queue, self._clock = load, queue, clock
        self._pin, self._failure = pin_seconds, failure_seconds
        self._state: _State[V] = _State()
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"voice-loader-{number}", daemon=True) for number in range(loaders)
        ]
        for thread in self._threads:
            thread.start()

    def get(self, key: Key, uses: int = 1, interactive: bool = False) -> V:
        """A warm voice, for so many uses. If it is cold and a person waits for it, ``interactive``, it is loaded before
        those for which nobody does, and takes the place of the newest of these if too many wait.

        Raises:
            VoiceLoading: it is cold; loading has begun.
            Exception: loading has failed just now: what the loader raised.
        """
        with self._changed:
            self._tidy()
            entry = self._state.warm.get(key)
            if entry is None:
                self._begin(key, interactive)
                raise VoiceLoading("the voice is being loaded; ask again")
            self.counters.reused += uses if entry.uses else uses - 1
            entry.uses += uses
            entry.used = entry.asked = self._clock()
            self._state.warm.move_to_end(key)
            self._tidy()  # what has been used may leave
            self._changed.notify_all()
            return entry.voice

    def warm(self, key: Key, interactive: bool = False) -> None:
        """Load a voice ahead of its use, see `get`. If it is warm, its time to live begins anew.

        Raises:
            VoiceLoading: so many are waiting that this one was not noted.
            Exception: as of `get`.
        """
        with self._changed:
            self._tidy()
            if entry := self._state.warm.get(key):
                entry.asked = self._clock()
            else:
                self._begin(key, interactive)

    def evict(self, voice: str) -> None:
        """Forget all versions of a voice, also those that wait or are being loaded."""
        with self._changed:
            state = self._state
            for key in [key for key in state.warm if key.voice == voice]:
                self._leave(key)
            state.queued = {key: urgent for key, urgent in state.queued.items() if key.voice != voice}
            state.failures = {key: failure for key, failure in state.failures.items() if key.voice != voice}
            state.loading |= {key: False for key in state.loading if key.voice == voice}
            self._changed.notify_all()

    def configure(self, changes: Mapping[str, Any]) -> None:
        """Change settings, all or none, with effect at once.

        Raises:
            ValueError: one is unknown or wrong.
        """
        with self._changed:
            self.settings = self.settings.changed(changes)
            self._tidy()
            self._changed.notify_all()

    def report(self) -> dict[str, Any]:
        """Settings, voices (the least recently used first, then those to come) and counters, for JSON."""
        with self._changed:
            self._tidy()
            now, state = self._clock(), self._state
            voices = [
                {
                    **asdict(entry.key),
                    "state": "WARM",
                    "bytes": entry.bytes,
                    "uses": entry.uses,
                    "idle_seconds": now - entry.used,
                    "load_seconds": entry.load_seconds,
                }
                for entry in state.warm.values()
            ]
            nothing = {"state": "LOADING", "bytes": 0, "uses": 0, "idle_seconds": 0.0, "load_seconds": 0.0}
            coming = [key for key, wanted in state.loading.items() if wanted]
            voices += [{**asdict(key), **nothing} for key in (*coming, *state.queued)]
            counters = asdict(self.counters)
            return {"process": self.process, **asdict(self.settings), "voices": voices, "counters": counters}

    def close(self, seconds: float = 5.0) -> None:
        """Load no more, forget everything, and wait so long for a load under way, which cannot be interrupted."""
        with self._changed:
            self._state = _State(closed=True)
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(seconds)

    def _begin(self, key: Key, interactive: bool) -> None:
        """Note that a cold voice is wanted, unless it has failed just now."""
        state = self._state
        if failure := state.failures.get(key):
            raise failure[0].with_traceback(None)
        if key in state.loading:
            state.loading[key] = True  # wanted again, if it was not
            return
        if key in state.queued:
            state.queued[key] |= interactive
            return
        if state.closed:
            raise VoiceLoading("the model is stopping")
        if len(state.queued) >= self._queue:
            newest = next((other for other in reversed(state.queued) if not state.queued[other]), None)
            if newest is None or not interactive:
                raise VoiceLoading("too many voices wait for it; ask again")
            del state.queued[newest]
        state.queued[key] = interactive
        self._changed.notify_all()

    def _tidy(self) -> None:
        """Let go what must: failures already told, voices too old or too many."""
        now, state = self._clock(), self._state
        state.failures = {k: told for k, told in state.failures.items() if now - told[1] <= self._failure}
        for entry in self._free(now):
            if now - entry.asked >= self.settings.idle_seconds:
                self._leave(entry.key, expired=True)
            elif not self.settings.enabled:
                self._leave(entry.key)
        while not self._fit() and self._push_out(now):
            pass

    def _fit(self, more: int = 0, size: int = 0) -> bool:
        """Whether all that is warm and ``more`` voices of ``size`` bytes are within the settings."""
        warm, settings = self._state.warm, self.settings
        held = sum(entry.bytes for entry in warm.values())
        return len(warm) + more <= settings.capacity and held + size <= settings.memory_bytes

    def _free(self, now: float) -> list[Entry[V]]:
        """Voices that may leave, the least recently used first."""
        return [entry for entry in self._state.warm.values() if entry.uses or now - entry.loaded >= self._pin]

    def _push_out(self, now: float) -> bool:
        """Make one leave, if one may."""
        if free := self._free(now):
            self._leave(STRATEGIES[self.settings.strategy](free).key)
        return bool(free)

    def _leave(self, key: Key, expired: bool = False) -> None:
        del self._state.warm[key]
        self.counters.expired += expired
        self.counters.evicted += not expired
        self._changed.notify_all()

    def _wait(self) -> None:
        """Until something is done, or something is due by the clock."""
        now, state = self._clock(), self._state
        free = {entry.key for entry in self._free(now)}
        due = [
            entry.asked + self.settings.idle_seconds if key in free else entry.loaded + self._pin
            for key, entry in state.warm.items()
        ]
        due += [at + self._failure for _, at in state.failures.values()]
        self._changed.wait(max(min(due) - now, 0.02) if due else None)

    def _work(self) -> None:
        while (key := self._next()) is not None:
            self._load_one(key)

    def _next(self) -> Key | None:
        """The next voice to load, None when there will be no more."""
        with self._changed:
            while not self._state.closed:
                self._tidy()
                if self._state.queued:
                    key = max(self._state.queued, key=lambda one: self._state.queued[one])  # the oldest of the urgent
                    del self._state.queued[key]
                    self._state.loading[key] = True
                    return key
                self._wait()
            return None

    def _load_one(self, key: Key) -> None:
        begin = self._clock()
        try:
            voice = self._load(key)
            self._insert(key, voice, voice.bytes, self._clock() - begin)
        except BaseException as error:  # also a panic of some library: this thread must go on
            told = error if isinstance(error, Exception) else RuntimeError(f"loading ended by {type(error).__name__}")
            with self._changed:
                if self._state.loading.get(key, False):
                    self.counters.failed += 1
                    self._state.failures[key] = (told.with_traceback(None), self._clock())
        finally:
            with self._changed:
                self._state.loading.pop(key, None)
                self._changed.notify_all()

    def _insert(self, key: Key, voice: V, size: int, taken: float) -> None:
        """Keep what was loaded, as soon as there is room and unless it is no longer wanted."""
        with self._changed:
            while self._state.loading.get(key, False):
                self._tidy()
                if self._make_room(key, size):
                    now = self._clock()
                    self._state.warm[key] = Entry(key, voice, size, now, now, now, taken)
                    self._state.loading.pop(key)
                    self.counters.inserted += 1
                    self.counters.load_seconds += taken
                else:
                    self._wait()  # all are pinned

    def _make_room(self, key: Key, size: int) -> bool:
        """Whether one more may be inserted; other versions of the same voice go first."""
        if size > (limit := self.settings.memory_bytes):
            raise VoiceRefused("TOO_LARGE", f"the voice needs {size:,} bytes of memory; all have {limit:,}")
        now = self._clock()
        for entry in self._free(now):
            if entry.key.voice == key.voice:
                self._leave(entry.key)
        while not self._fit(1, size):
            if not self._push_out(now):
                return False
        return True
