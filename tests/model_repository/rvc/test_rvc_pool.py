"""The voice pool: who leaves, who may not, what it counts, and that nobody waits for somebody else's voice."""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from model_repository.rvc.loader import Key, VoiceLoading, VoiceRefused, VoiceStoreError
from model_repository.rvc.pool import Pool
from model_repository.rvc.residents import STRATEGIES, PoolSettings

pytestmark = pytest.mark.timeout(240)


@dataclass(eq=False)
class Loaded:
    """A voice that is nothing but its key."""

    key: Key
    bytes: int = 7


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def key(name: str, version: int = 0) -> Key:
    return Key(name, f"{version:064x}")


Make = Callable[..., Pool[Loaded]]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(clock: Clock) -> Iterator[Make]:
    """Call it with settings of the pool, and ``load`` or other arguments of `Pool`."""
    pools: list[Pool[Loaded]] = []

    def build(load: Callable[[Key], Loaded] = Loaded, **given: Any) -> Pool[Loaded]:
        own = {name: given.pop(name) for name in ("loaders", "queue", "clock") if name in given}
        pools.append(Pool(load, PoolSettings(**given), **{"clock": clock, **own}))
        return pools[-1]

    yield build
    for pool in pools:
        pool.close()


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 100
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return found


def use(pool: Pool[Loaded], *names: str) -> None:
    """Use voices, waiting for each."""
    for name in names:
        wanted = key(name)

        def got(wanted: Key = wanted) -> bool:
            try:
                return pool.get(wanted).key == wanted
            except VoiceLoading:
                return False

        until(got)


def idle(pool: Pool[Loaded]) -> bool:
    return all(voice["state"] == "WARM" for voice in pool.report()["voices"])


def warm(pool: Pool[Loaded]) -> str:
    """Names of warm voices, the least recently used first, once nothing is loading."""
    until(lambda: idle(pool))
    return "".join(voice["voice"] for voice in pool.report()["voices"])


@pytest.mark.parametrize(("strategy", "leaves"), [("lru", "a"), ("lru+lfu", "b"), ("ttl", "c")])
def test_who_leaves_a_full_pool(make: Make, clock: Clock, strategy: str, leaves: str) -> None:
    pool = make(capacity=4, strategy=strategy)
    for name in "aaabcd":
        clock.now += 1
        use(pool, name)
    for name in "ab":  # their time to live is renewed, but they are not used
        clock.now += 1
        pool.warm(key(name))
    use(pool, "e")
    assert set("abcde") - set(warm(pool)) == {leaves}


def test_recently_used_voices_outlive_often_used_ones(make: Make, clock: Clock) -> None:
    pool = make(capacity=4, strategy="lru+lfu")
    for name in "aabbcd":
        clock.now += 1
        use(pool, name)
    use(pool, "e")
    assert warm(pool) == "bcde"  # c and d were used less, but are of the younger half


def test_idle_voices_leave_without_being_asked(make: Make) -> None:
    pool = make(capacity=4, idle_seconds=1.0, clock=time.monotonic)
    use(pool, "a")
    until(lambda: pool.counters.expired == 1)  # by the pool's own thread
    assert warm(pool) == ""
    assert pool.counters.evicted == 0


def test_use_and_warming_renew_the_time_to_live(make: Make, clock: Clock) -> None:
    pool = make(idle_seconds=30)
    use(pool, *"abc")
    clock.now += 29
    use(pool, "a")
    pool.warm(key("b"))
    clock.now += 1
    assert warm(pool) == "ba"
    pool.configure({"idle_seconds": 0.5})
    assert warm(pool) == ""
    assert pool.counters.expired == 3


def test_a_loaded_voice_stays_until_it_was_used_or_ten_seconds(make: Make, clock: Clock) -> None:
    pool = make(capacity=1, idle_seconds=5)
    pool.warm(key("a"))
    assert warm(pool) == "a"
    pool.warm(key("b"))
    clock.now += 9
    time.sleep(0.1)  # the loader has had time to do wrong
    assert {v["voice"]: v["state"] for v in pool.report()["voices"]} == {"a": "WARM", "b": "LOADING"}
    clock.now += 1
    assert warm(pool) == "b"
    pool.warm(key("c"))
    pool.get(key("b"))
    assert warm(pool) == "c"


def test_disabled_and_enabled_at_run_time(make: Make, clock: Clock) -> None:
    pool = make()
    use(pool, *"ab")
    pool.configure({"enabled": False})
    assert warm(pool) == ""
    use(pool, "a", "a")
    assert warm(pool) == ""
    assert pool.counters.inserted == 4
    pool.warm(key("c"))
    assert warm(pool) == "c"  # for who waits for it
    clock.now += 10
    assert warm(pool) == ""
    pool.configure({"enabled": True})
    use(pool, "a", "a", "a")
    assert warm(pool) == "a"
    assert (pool.counters.inserted, pool.counters.evicted, pool.counters.reused) == (6, 5, 2)


def test_a_smaller_capacity_has_effect_at_once(make: Make) -> None:
    pool = make(capacity=5)
    use(pool, *"abcde")
    pool.configure({"capacity": 2})
    assert pool.counters.evicted == 3
    assert warm(pool) == "de"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"capacity": 0}, "capacity is 0"),
        ({"capacity": True}, "capacity is True"),
        ({"capacity": 2.0}, "capacity is 2.0"),
        ({"idle_seconds": float("nan")}, "idle_seconds is nan"),
        ({"idle_seconds": 0}, "idle_seconds is 0"),
        ({"strategy": "mru"}, "strategy is 'mru'"),
        ({"enabled": "yes"}, "enabled is 'yes'"),
        ({"memory_bytes": 0}, "memory_bytes is 0"),
        ({"capacity": 3, "size": 1}, "unknown settings"),
    ],
)
def test_wrong_settings_change_nothing(make: Make, changes: dict[str, Any], text: str) -> None:
    pool = make()
    with pytest.raises(ValueError, match=text):
        pool.configure(changes)
    assert pool.settings == PoolSettings()


def test_another_version_of_a_voice_takes_its_place(make: Make) -> None:
    pool = make()
    use(pool, "a", "b")
    pool.warm(key("a", 1))
    assert warm(pool) == "ba"
    assert pool.get(key("a", 1)).key.weights == f"{1:064x}"
    with pytest.raises(VoiceLoading):
        pool.get(key("a", 0))


def test_a_cold_voice_holds_nobody_up(make: Make) -> None:
    gate = threading.Event()

    def load(wanted: Key) -> Loaded:
        if wanted.voice == "slow":
            assert gate.wait(100)
        return Loaded(wanted)

    pool = make(load, queue=2)
    use(pool, "a")
    pool.warm(key("slow"))
    until(lambda: pool.report()["voices"][-1]["state"] == "LOADING")
    assert pool.get(key("a")).key == key("a")
    until(lambda: not pool._state.queued)
    for name in "bcd":  # the queue is bounded, and asking twice takes no second place
        for _ in range(2):
            with pytest.raises(VoiceLoading, match="too many" if name == "d" else "being loaded"):
                pool.get(key(name))
    assert [v["voice"] for v in pool.report()["voices"]] == ["a", "slow", "b", "c"]
    for name in ("b", "c", "slow"):
        pool.evict(name)
    pool.warm(key("c"))
    assert [v["voice"] for v in pool.report()["voices"]] == ["a", "c"]
    gate.set()
    assert warm(pool) == "ac"
    assert pool.counters.inserted == 2  # what was evicted while it was loading came to nothing


def test_voices_for_which_people_wait_come_first(make: Make) -> None:
    gate, loaded = threading.Event(), []

    def load(wanted: Key) -> Loaded:
        loaded.append(wanted.voice)
        assert gate.wait(100)
        return Loaded(wanted)

    pool = make(load, queue=4)
    pool.warm(key("slow"))
    until(lambda: loaded)
    for name in "abcd":
        pool.warm(key(name))
    pool.warm(key("b"), interactive=True)
    for name in "xy":
        with pytest.raises(VoiceLoading, match="being loaded"):
            pool.get(key(name), interactive=True)  # in the places of d and c
    with pytest.raises(VoiceLoading, match="too many"):
        pool.warm(key("d"))
    pool.warm(key("z"), interactive=True)  # in the place of a
    with pytest.raises(VoiceLoading, match="too many"):
        pool.warm(key("w"), interactive=True)
    pool.evict("z")
    pool.warm(key("e"))
    gate.set()
    assert warm(pool) == "slowbxye"
    assert loaded == ["slow", *"bxye"]


def test_memory_is_bounded(make: Make) -> None:
    sizes = {"a": 30, "b": 30, "c": 30, "d": 80, "e": 101}
    pool = make(lambda wanted: Loaded(wanted, sizes[wanted.voice]), memory_bytes=100)
    use(pool, *"abc")
    use(pool, "d")
    assert warm(pool) == "d"
    pool.warm(key("e"))
    until(lambda: pool.counters.failed)
    with pytest.raises(VoiceRefused, match="TOO_LARGE: the voice needs 101 bytes of memory; all have 100"):
        pool.get(key("e"))
    assert warm(pool) == "d"
    pool.configure({"memory_bytes": 79})
    assert warm(pool) == ""


def test_whatever_a_loader_raises_is_told(make: Make) -> None:
    class Panic(BaseException):
        """As some libraries raise."""

    def load(wanted: Key) -> Loaded:
        if wanted.voice == "x":
            raise Panic
        return Loaded(wanted)

    pool = make(load)
    pool.warm(key("x"))
    until(lambda: pool.counters.failed)
    with pytest.raises(RuntimeError, match="Panic"):
        pool.get(key("x"))
    use(pool, "a")


def test_a_voice_evicted_while_loading_may_be_wanted_again(make: Make) -> None:
    gate = threading.Event()
    pool = make(lambda wanted: gate.wait(100) and Loaded(wanted))  # type: ignore[arg-type, return-value]
    pool.warm(key("a"))
    until(lambda: pool._state.loading)
    pool.evict("a")
    assert pool.report()["voices"] == []
    pool.warm(key("a"))
    gate.set()
    assert warm(pool) == "a"


def test_a_failure_is_told_for_two_seconds_and_then_forgotten(make: Make, clock: Clock) -> None:
    broken = [True]

    def load(wanted: Key) -> Loaded:
        if broken:
            raise VoiceStoreError("away")
        return Loaded(wanted)

    pool = make(load)
    for _ in range(2):
        pool.warm(key("a"))
        until(lambda: idle(pool))
        for ask in (pool.get, pool.warm):
            with pytest.raises(VoiceStoreError, match="away"):
                ask(key("a"))
        clock.now += 2.1
    broken.clear()
    use(pool, "a")
    assert pool.counters.failed == 2
    assert pool.counters.inserted == 1


def test_a_closed_pool_loads_no_more(make: Make) -> None:
    gate = threading.Event()
    pool = make(lambda wanted: gate.wait(100) and Loaded(wanted))  # type: ignore[arg-type, return-value]
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("voice-loader")]
    pool.warm(key("a"))
    pool.warm(key("b"))
    until(lambda: len(pool._state.queued) == 1)
    pool.close(0)
    with pytest.raises(VoiceLoading, match="stopping"):
        pool.get(key("a"))
    gate.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert pool.counters.inserted == 0


def settle(pool: Pool[Loaded], clock: Clock) -> None:
    """Until nothing is loading; if that waits for a place, time passes."""
    polls = 0
    while not idle(pool):
        polls += 1
        time.sleep(0.001)
        if polls % 30 == 0:
            clock.now += 10
            pool.configure({})  # the loader looks at the clock again


def test_counters_agree_with_what_happened(make: Make, clock: Clock) -> None:
    """Hundreds of random steps, against a ledger of what the loader and the callers saw."""
    loads: Counter[bool] = Counter()
    alive: weakref.WeakSet[Loaded] = weakref.WeakSet()

    def load(wanted: Key) -> Loaded:
        loads[wanted.voice != "x"] += 1
        if wanted.voice == "x":
            raise VoiceStoreError("away")
        voice = Loaded(wanted)
        alive.add(voice)
        return voice

    pool = make(load, capacity=3, idle_seconds=20)
    random = np.random.default_rng(5)
    uses = first = 0
    for number in range(600):
        step, name = random.random(), "abcdefx"[random.integers(7)]
        settle(pool, clock)
        if number % 50 == 0:
            changes = {"capacity": int(random.integers(2, 5)), "enabled": random.random() < 0.7}
            pool.configure({**changes, "strategy": list(STRATEGIES)[number % 3]})
        before = {voice["voice"]: voice["uses"] for voice in pool.report()["voices"]}
        try:
            if step < 0.75:
                count = int(random.integers(1, 4))
                pool.get(key(name), count)
                uses += count
                first += before[name] == 0
            elif step < 0.85:
                pool.warm(key(name))
            elif step < 0.95:
                clock.now += float(random.integers(40))
            else:
                pool.evict(name)
        except (VoiceLoading, VoiceStoreError):
            pass
    settle(pool, clock)
    names, c = warm(pool), pool.counters
    print(names, c)
    assert (c.inserted, c.failed) == (loads[True], loads[False])
    assert c.inserted == len(names) + c.evicted + c.expired
    assert c.reused == uses - first
    assert len(alive) == len(names)  # what has left is gone
    assert min(c.inserted, c.evicted, c.expired, c.failed, c.reused) > 10


def test_loading_time_is_counted(make: Make, clock: Clock) -> None:
    def load(wanted: Key) -> Loaded:
        clock.now += 0.25
        return Loaded(wanted)

    pool = make(load)
    use(pool, *"abc")
    assert pool.counters.load_seconds == 0.75
    assert [(v["load_seconds"], v["bytes"], v["uses"]) for v in pool.report()["voices"]] == [(0.25, 7, 1)] * 3


def test_a_hundred_voices_through_ten_places_starve_nobody(make: Make) -> None:
    under_way = [0]
    most = [0, 0]
    lock = threading.Lock()

    def load(wanted: Key) -> Loaded:
        with lock:
            under_way[0] += 1
            most[1] = max(most[1], under_way[0])
        time.sleep(0.002)
        with lock:
            under_way[0] -= 1
        return Loaded(wanted)

    pool = make(load, capacity=10, loaders=2, clock=time.monotonic)
    asked: Counter[str] = Counter()

    def client(number: int) -> None:
        random = np.random.default_rng(number)
        for voice in random.permutation(100):
            wanted = key(f"v{voice}")
            while True:
                asked["all"] += 1
                try:
                    assert pool.get(wanted).key == wanted
                    break
                except VoiceLoading:
                    time.sleep(0.003)
            states = Counter(v["state"] for v in pool.report()["voices"])
            most[0] = max(most[0], states["WARM"])

    with ThreadPoolExecutor(8) as clients:
        list(clients.map(client, range(8)))
    assert most[0] <= 10
    assert most[1] <= 2
    c = pool.counters
    assert c.inserted == 10 + c.evicted
    assert c.inserted <= 900  # hardly a voice was loaded in vain
    print(c, asked)


def test_nobody_is_pushed_out_before_asking_again(make: Make) -> None:
    """Eight voices through one place: those who ask come back later than the next voice is loaded."""
    pool = make(capacity=1, clock=time.monotonic)

    def client(name: str) -> None:
        while True:
            try:
                pool.get(key(name))
                return
            except VoiceLoading:
                time.sleep(0.02)

    with ThreadPoolExecutor(8) as clients:
        list(clients.map(client, "abcdefgh"))
    assert pool.counters.inserted == 8
