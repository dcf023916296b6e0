"""Everything that has to be measured on a GPU, in one command: `python -m jobs.gpu_kit --record FILE [--seconds 420]`.

Needs torch, transformers, numpy, scipy and pytest, neither ray nor omegaconf. In turn: the tests marked `gpu`; the
floor (what a kernel's launch, memory and a matrix product cost); what forwards cost by token count; and every way of
decoding beside AR, on the bundled pair, on a Transformer-base and on a decoder of a billion weights, both random. The
record is written after each step, so that a run that is cut off leaves what it had. Without a GPU the same steps run
eagerly on the CPU: that is how they are tested.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cmasd.checkpoints.random_models import Sizes, decoder_only, encoder_decoder

if TYPE_CHECKING:
    import torch

    from cmasd.config.tree import Config
    from cmasd.engine import Pair

ROOT = Path(__file__).resolve().parents[1]
BATCH_SIZES = [1, 8, 32, 128]
TOKENS = (1, 2, 4, 8)
"""Per row, of which forwards are timed."""
SHARES = {"tests": 0.25, "floor": 0.02, "steps": 0.13, "bench": 0.6}
"""Of the seconds."""
REPEATS = 200
"""Of each measurement of the floor."""


@dataclass
class Record:
    """What was measured so far, in a file."""

    path: Path
    content: dict[str, Any] = field(default_factory=dict)

    def keep(self, name: str, value: object) -> None:
        """Written at once."""
        self.content[name] = value
        self.path.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A step that fails is told in the record, and the next one begins."""
        started = time.perf_counter()
        try:
            yield
        except (RuntimeError, ValueError, OSError, ImportError, AssertionError) as error:
            self.keep(f"{name}_error", f"{type(error).__name__}: {error}")
        self.keep("seconds", {**self.content.get("seconds", {}), name: round(time.perf_counter() - started, 1)})
        print(f"{name}: {self.content['seconds'][name]} s", flush=True)


BASE = Sizes(512, 2048, 8, 6, 1, 32_000)
BILLION = Sizes(2048, 8192, 16, 16, 2, 32_000)


def random_pair(build: Callable[[Sizes, int], Any], sizes: Sizes, device: str) -> "Pair":
    """In 16 bits on a GPU; no end of sequence, so that all rows are of one length."""
    import torch

    from cmasd.engine import Pair
    from cmasd.generation.constraints import Constraints

    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    verifier, drafter = (
        build(sizes, layers).to(device, dtype).eval() for layers in (sizes.layers, sizes.drafter_layers)
    )
    return Pair(verifier, drafter, cast(Any, None), Constraints(), max_new_tokens=64, max_source_tokens=64)


def sources(count: int, vocabulary: int) -> list[list[int]]:
    """Of 8 to 40 tokens."""
    return [[2 + (7 * row + 13 * place) % (vocabulary - 2) for place in range(8 + row % 33)] for row in range(count)]


def config_of(**sections: dict[str, Any]) -> "Config":
    """A configuration that was never in a file, which omegaconf would have to read."""
    from cmasd.config.tree import Config

    config = Config()
    for name, keys in {"telemetry": {"level": "none"}, **sections}.items():
        config = replace(config, **{name: replace(getattr(config, name), **keys)})
    return config


def tests(seconds: float) -> dict[str, Any]:
    """The tests marked `gpu`, and the last lines of what they print."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/unit/runner"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"exit": None, "said": f"not done within {seconds:.0f} s"}
    return {"exit": done.returncode, "said": done.stdout.splitlines()[-12:]}


def floor(device: str, repeats: int = REPEATS) -> dict[str, float]:
    """Microseconds of an operation on eight numbers, GB/s of a copy, and TFLOP/s of a product in 16 bits."""
    import torch

    small = torch.ones(8, device=device)
    large = torch.empty((1 << 26) if device == "cuda" else (1 << 20), dtype=torch.float32, device=device)
    side = 4096 if device == "cuda" else 256
    square = torch.ones(side, side, dtype=torch.bfloat16 if device == "cuda" else torch.float32, device=device)
    launch = _seconds(lambda: small.add_(1), device, repeats)
    copying = _seconds(lambda: large.add_(1), device, max(3, repeats // 20))
    product = _seconds(lambda: square @ square, device, max(3, repeats // 20))
    return {
        "launch_microseconds": 1e6 * launch,
        "memory_gb_per_second": 2 * large.numel() * 4 / copying / 1e9,
        "product_tflops": 2 * side**3 / product / 1e12,
    }


def _seconds(operation: Callable[[], "torch.Tensor"], device: str, repeats: int) -> float:
    """Of one, launched one after the other."""
    import torch

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    operation()
    wait()
    started = time.perf_counter()
    for _ in range(repeats):
        operation()
    wait()
    return (time.perf_counter() - started) / repeats


def steps(pair: "Pair", config: "Config", rows: list[list[int]], sizes: list[int], seconds: float) -> list[Any]:
    """What forwards cost by rows and tokens."""
    from cmasd.evaluation.speed.steps import step_costs

    return [cost.to_dict() for cost in step_costs(pair, config, rows, sizes, seconds, TOKENS)]


def speeds(pair: "Pair", config: "Config", rows: list[list[int]], sizes: list[int], seconds: float) -> list[Any]:
    """Every way of decoding beside AR."""
    from cmasd.evaluation.speed.bench import bench
    from cmasd.evaluation.speed.engines import Lineup

    lineup = Lineup(("plain", "goodput", "fixed", "paper"), (1, 3))
    return [row.to_dict() for row in bench(pair, config, rows, sizes, lineup, seconds)]


def measure(
    record: Record, seconds: float, device: str, sizes: list[int], models: "dict[str, tuple[Any, ...]]"
) -> None:
    """All steps; `models` are a pair, its configuration and rows by name, each made when its turn comes."""
    with record.step("tests"):
        record.keep("tests", tests(SHARES["tests"] * seconds))
    with record.step("floor"):
        record.keep("floor", floor(device))
    each = seconds / len(models)
    for name, (make, config, rows) in models.items():
        with record.step(name):
            pair = make()
            record.keep(f"{name}_steps", steps(pair, config, rows, sizes, SHARES["steps"] * each))
            record.keep(f"{name}_bench", speeds(pair, config, rows, sizes, SHARES["bench"] * each))
            del pair


def models_of(device: str) -> "dict[str, tuple[Any, ...]]":
    """The bundled pair, a Transformer-base, and a decoder of a billion weights."""
    from cmasd.engine import load_pair

    drafter = {"max_draft_tokens": 3}
    bundled = config_of(
        models={"verifier": "en-de/verifier", "drafter": "en-de/drafter"}, drafter={**drafter, "shortlist": 3000}
    )
    any_pair = config_of(drafter=drafter, engine={"max_new_tokens": 64})
    return {
        "bundled": (lambda: replace(load_pair(bundled), max_new_tokens=64), bundled, sources(256, 8000)),
        "transformer_base": (lambda: random_pair(encoder_decoder, BASE, device), any_pair, sources(256, 32_000)),
        "decoder_1b": (lambda: random_pair(decoder_only, BILLION, device), any_pair, sources(256, 32_000)),
    }


def main(argv: list[str] | None = None) -> int:
    """Measure, and keep the record."""
    import torch

    parser = argparse.ArgumentParser(prog="python -m jobs.gpu_kit", description=__doc__)
    parser.add_argument("--record", type=Path, required=True, metavar="FILE", help="where the JSON goes")
    parser.add_argument(
        "--seconds", type=float, default=420.0, help="for all of it, as far as that can be; default 420"
    )
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    record = Record(args.record)
    name = torch.cuda.get_device_name() if device == "cuda" else "no GPU: eager, on the CPU"
    record.keep("about", {"device": name, "torch": torch.__version__, "sizes": [asdict(BASE), asdict(BILLION)]})
    measure(record, args.seconds, device, BATCH_SIZES, models_of(device))
    failed = sorted(key for key in record.content if key.endswith("_error"))
    print(f"record  {args.record}" + (f"; failed: {', '.join(failed)}" if failed else ""), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
