"""The voice model's stages and engine by dtype, compilation and batch size, with generated weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_repository.rvc import decoder, flow, pitch, standin
from model_repository.rvc.audio import highpass
from model_repository.rvc.chunks import DEFAULT, RATE, Audio, Chunk, Geometry
from model_repository.rvc.content import ContentEncoder
from model_repository.rvc.engine import Engine
from model_repository.rvc.noise import Noise
from model_repository.rvc.rmvpe import Rmvpe
from model_repository.rvc.voice import Voice, load
from tests.bench.gpu_timing import Row, Run, exact, snr
from tests.fixtures.rvc import make_checkpoint

SMALL = Geometry(100, 40, 40, 5)
BATCHES, QUICK_BATCHES = (1, 8, 16), (1, 2)
NETWORKS = ("content", "pitch", "prior", "flow", "decoder")


@dataclass(frozen=True)
class Variant:
    """How the networks run. how: "" as they are, ``graphs`` or ``compile``, of the networks in ``which``."""

    dtype: str
    how: str = ""
    which: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.dtype}, {self.how}: {', '.join(self.which)}" if self.how else self.dtype


PLAIN = tuple(Variant(dtype) for dtype in ("float32", "tf32", "float16", "bfloat16"))
FASTER = tuple(
    Variant(dtype, how, which)
    for dtype in ("float16", "tf32")
    for how in ("graphs", "compile")
    for which in (("decoder",), NETWORKS)
)
ON_CPU = (Variant("float32"), Variant("bfloat16"), Variant("float32", "compile", ("decoder",)))


def make_weights(run: Run) -> None:
    """Generate the weights of all three networks."""
    standin.content(run.folder / standin.CONTENT_FILE)
    standin.voice(run.folder / "voice.pth")
    torch.save(make_checkpoint.build("rmvpe")[0], run.folder / "rmvpe.pt")


def measure(run: Run) -> list[Row]:
    """A row for each variant and batch size; the first is what the others' distance is measured from."""
    made: list[tuple[Audio, Audio]] = []
    return run.collect(_rows(run, made))


def _rows(run: Run, made: list[tuple[Audio, Audio]]) -> Iterator[tuple[str, Callable[[], Row]]]:
    for variant in (*PLAIN, *FASTER) if run.cuda else ON_CPU:
        networks: list[Networks] = []  # loaded for the first batch size, and gone with the last
        for batch in QUICK_BATCHES if run.quick else BATCHES:
            yield f"rvc {variant.name}, batch of {batch}", partial(_row, run, variant, batch, networks, made)


def _row(run: Run, variant: Variant, batch: int, networks: list[Networks], made: list[tuple[Audio, Audio]]) -> Row:
    if not networks:
        networks.append(Networks(run, variant))
    network = networks[0]
    run.start_memory()
    began = time.perf_counter()
    work = network.stages(batch)
    for stage in work.values():
        stage()
    prepared = time.perf_counter() - began
    milliseconds = {name: round(1e3 * run.seconds(stage), 2) for name, stage in work.items()}
    made.append((network.sung(given=True), network.sung(given=False)))
    seconds = milliseconds["engine"] / 1e3
    return {
        "batch": batch,
        "times_real_time": round(batch * network.geometry.core / 100 / seconds, 1),
        "ms": milliseconds,
        "first_call_seconds": round(prepared, 1),
        "memory_gib": run.memory_gib(),
        "snr_db": snr(made[0][0], made[-1][0]),
        "snr_with_own_pitch_db": snr(made[0][1], made[-1][1]),
    }


class Networks:
    """An engine and a voice as one variant has them."""

    def __init__(self, run: Run, variant: Variant) -> None:
        exact(variant.dtype == "tf32")
        dtype = torch.float32 if variant.dtype == "tf32" else getattr(torch, variant.dtype)
        self.geometry = SMALL if run.quick else DEFAULT
        encoder = ContentEncoder.load(run.folder / standin.CONTENT_FILE).to(device=run.device, dtype=dtype)
        self._rmvpe = Rmvpe.load(run.folder / "rmvpe.pt").to(run.device)
        self._voice: Voice = load(run.folder / "voice.pth", device=run.device, dtype=dtype)
        self._encoder = encoder
        self._engine = Engine(encoder, {"rmvpe": self._rmvpe}, self.geometry)
        self._run = run
        network = self._voice.synthesizer
        places = {
            "content": (encoder, "forward"),
            "pitch": (self._rmvpe, "salience"),
            "prior": (network.enc_p, "forward"),
            "flow": (network.flow, "inverse"),
            "decoder": (network.dec, "forward"),
        }
        for name in variant.which:
            owner, method = places[name]
            plain = getattr(owner, method)
            setattr(owner, method, Graphed(plain) if variant.how == "graphs" else torch.compile(plain))

    def stages(self, batch: int) -> dict[str, Callable[[], object]]:
        """What is timed: each stage on what the engine would give it, and the engine on as many chunks."""
        g, device, network = self.geometry, self._run.device, self._voice.synthesizer
        random = np.random.default_rng(0)
        decoded = g.core + g.fade + 2 * decoder.REACH
        flowed = decoded + 2 * flow.REACH
        chunks = [self._chunk(number, given=False) for number in range(batch)]
        audio = torch.from_numpy(np.stack([chunk.audio for chunk in chunks])).to(device)
        f0 = np.full((batch, g.frames), 220.0)
        bins, hertz = pitch.tensors(f0, torch.device(device))

        def normal(*shape: int) -> Tensor:
            return torch.from_numpy(random.standard_normal(shape).astype(np.float32)).to(device, network.dtype)

        phone, latent, z = normal(batch, g.frames, 768), normal(batch, 192, flowed), normal(batch, 192, decoded)
        mask = torch.ones(batch, 1, g.frames, dtype=network.dtype, device=device)
        source = normal(batch, decoded * self._voice.samples).float()
        phase = torch.zeros(batch, dtype=torch.float64, device=device)
        excite = network.dec.m_source
        assert excite is not None
        work: dict[str, Callable[[], object]]
        with torch.inference_mode():
            g_speaker = network.speaker(torch.zeros(batch, dtype=torch.long, device=device))
            har = excite(hertz[:, :decoded], source, phase)
        work = {
            "highpass": lambda: highpass(np.stack([chunk.audio for chunk in chunks])),
            "content": lambda: self._encoder(audio, "v2"),
            "pitch": lambda: self._rmvpe(audio),
            "prior": lambda: network.enc_p(phone, bins, mask),
            "noise": lambda: self._noise(chunks, decoded, flowed),
            "flow": lambda: network.flow.inverse(latent, mask[..., :flowed], g_speaker),
            "excitation": lambda: excite(hertz[:, :decoded], source, phase),
            "decoder": lambda: network.dec(z, g_speaker, har),
            "engine": lambda: self._engine.convert(self._voice, chunks),
        }
        return {name: torch.inference_mode()(stage) for name, stage in work.items()}

    def sung(self, *, given: bool) -> Audio:
        """One chunk through the engine, with the pitch ``given`` or found."""
        return self._engine.convert(self._voice, [self._chunk(0, given)])[0].audio

    def _noise(self, chunks: Sequence[Chunk], decoded: int, flowed: int) -> None:
        for chunk in chunks:
            Noise(chunk.params.seed, 0, 192).frames(chunk.first, flowed)
            Noise(chunk.params.seed, 1, self._voice.samples).frames(chunk.first, decoded)

    def _chunk(self, number: int, given: bool) -> Chunk:
        g = self.geometry
        f0 = 220.0 + 40 * np.sin(np.arange(g.frames) / 20 + number)
        phase = 2 * np.pi * np.cumsum(np.repeat(f0, RATE // 100)) / RATE
        voiced: NDArray[Any] = np.pad(sum(np.sin(k * phase) / k for k in range(1, 9)), (0, 80))
        noise = np.random.default_rng(number).standard_normal(len(voiced))
        audio = (0.1 * voiced + 0.01 * noise).astype(np.float32)
        return Chunk(audio, number * g.core, g.core, f0=f0 if given else None)


class Graphed:
    """A function on the GPU whose kernels are recorded once for each shape of its arguments, and then replayed."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._recorded: dict[tuple[Any, ...], tuple[torch.cuda.CUDAGraph, list[Any], Any]] = {}

    def __call__(self, *arguments: Any) -> Any:
        """As the function."""
        key = tuple((tuple(a.shape), a.dtype) if isinstance(a, Tensor) else a for a in arguments)
        if key not in self._recorded:
            self._recorded[key] = self._record(arguments)
        graph, own, out = self._recorded[key]
        for mine, given in zip(own, arguments, strict=True):
            if isinstance(mine, Tensor):
                mine.copy_(given)
        graph.replay()
        return out.clone() if isinstance(out, Tensor) else tuple(part.clone() for part in out)

    def _record(self, arguments: tuple[Any, ...]) -> tuple[torch.cuda.CUDAGraph, list[Any], Any]:
        own = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
        beside: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):  # libraries choose their kernels and take their memory before the recording
            for _ in range(3):
                self._function(*own)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = self._function(*own)
        return graph, own, out
