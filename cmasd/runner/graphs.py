"""CUDA graphs of what recurs: one launch in place of a hundred and more.

Shapes are rounded up to a bucket, so that few graphs serve all rows and lengths. A bucket runs as it is until it has
recurred, is then captured, and replayed from there on. A captured function sees the device alone: what the host knows
is the bucket's `Extent`. On a CPU the same buckets run uncaptured.

`Graphs` hold the forwards of a runner; rows of padding write to the cache's spare slot, and the output layer is not in
the graph, because logits are the caller's to keep. `StateGraphs` hold a whole iteration of the engine.

Shapes: B rows, R rows with padding, T window, d model width.
"""

import logging
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from cmasd.runner.base import Extent, Pass

GraphsMode = Literal["auto", "on", "off"]
Function = Callable[[Pass], Tensor]
"""A rectangle -> hidden states (R, T, d), without a wait for the device."""
Output = TypeVar("Output")

WARM_UPS = 3
"""Before a capture, on its stream: libraries choose kernels and allocate workspaces in their first calls."""
USES_BEFORE_CAPTURE = 4
"""A capture costs about as much as the four forwards it makes; shapes that come up less often are not worth it."""
MOST_BUCKETS = 128
"""The least recently used goes first. A working set beyond this is never captured, and runs as without graphs."""
LEAST_LENGTH = 32
"""Positions that are read at least: fewer would cost graphs and save microseconds."""
FINE_FROM = 16
"""From here on there are two buckets per doubling, so that rounding adds at most half; below, one is enough."""

log = logging.getLogger(__name__)


def uses_graphs(mode: GraphsMode, device: torch.device) -> bool:
    """Whether forwards go through buckets."""
    return mode == "on" or (mode == "auto" and device.type == "cuda")


def can_capture(device: torch.device) -> bool:
    """Whether buckets can become graphs."""
    return device.type == "cuda"


def rounded(count: int) -> int:
    """The least of 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, ... that is not less than `count`."""
    power = 1 << (count - 1).bit_length()
    smaller = power // 4 * 3
    return smaller if power > FINE_FROM and count <= smaller else power


class Bucket(Generic[Output]):
    """A function at one extent: called, or captured and replayed."""

    def __init__(self, function: Callable[[Extent], Output], extent: Extent) -> None:
        self.extent = extent
        self.uses = 0
        self._function = function
        self._graph: torch.cuda.CUDAGraph | None = None
        self._output: Output | None = None

    @property
    def is_captured(self) -> bool:
        """Whether `run` replays a graph."""
        return self._graph is not None

    def run(self) -> Output:
        """What the function gives; a captured bucket overwrites it in the next run of any."""
        if self._graph is None:
            return self._function(self.extent)
        self._graph.replay()
        assert self._output is not None, "a capture keeps its output"
        return self._output

    def capture(self, recorder: "Recorder", warm_ups: int) -> None:
        """Record the function, which runs as often as there are warm-ups."""
        self._graph, self._output = recorder.record(lambda: self._function(self.extent), warm_ups)


class BucketForwards(Bucket[Tensor]):
    """Forwards of one extent, with their inputs at fixed addresses."""

    def __init__(self, function: Function, extent: Extent, device: torch.device) -> None:
        super().__init__(lambda extent: function(Pass(self._tokens_RT, self._starts_R, extent, self._live)), extent)
        with torch.inference_mode(False):  # so that callers within and without it may write to them
            self._tokens_RT = torch.zeros(extent.rows, extent.window, dtype=torch.int64, device=device)
            self._starts_R = torch.zeros(extent.rows, dtype=torch.int64, device=device)
            self._live = torch.zeros((), dtype=torch.int64, device=device)
        self._rows = 0

    def load(self, tokens_BT: Tensor, starts_B: Tensor) -> None:
        """Copy a window in; rows of padding keep what they had, which was valid in this bucket."""
        rows = tokens_BT.shape[0]
        self._tokens_RT[:rows].copy_(tokens_BT)
        self._starts_R[:rows].copy_(starts_B)
        if rows != self._rows:
            self._live.fill_(rows)
            self._rows = rows


class Recorder:
    """One stream and one memory pool for all graphs of one kind, which are never in flight together."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, function: Callable[[], Output], warm_ups: int) -> tuple[torch.cuda.CUDAGraph, Output]:
        """Warm up and capture `function`; also its output, in the memory of the graph.

        The error mode lets other threads of the process use the device meanwhile. A capture that fails may leave its
        own stream current; the outer block restores the caller's.
        """
        caller = torch.cuda.current_stream(self._device)
        with torch.cuda.device(self._device), torch.cuda.stream(caller):
            self._stream.wait_stream(caller)
            with torch.cuda.stream(self._stream):
                for _ in range(warm_ups):
                    function()
            caller.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                output = function()
            return graph, output


class _Buckets(ABC, Generic[Output]):
    """The buckets of one function."""

    def __init__(self, most: Extent, device: torch.device, insist: bool) -> None:
        self._most = most
        self._device = device
        self._insist = insist
        self._captures = can_capture(device)
        self._recorder: Recorder | None = None
        self._buckets: OrderedDict[Extent, Bucket[Output]] = OrderedDict()

    warm_ups: int
    """Before a capture."""

    @abstractmethod
    def _make(self, extent: Extent) -> Bucket[Output]: ...

    def _grow_tables(self) -> None:
        """Called before the first capture: no tensor may move once a graph knows its address."""

    @property
    def extents(self) -> list[Extent]:
        """Of the buckets held, the most recently used last."""
        return list(self._buckets)

    @property
    def captured(self) -> list[Extent]:
        """Of the buckets that are replayed."""
        return [extent for extent, bucket in self._buckets.items() if bucket.is_captured]

    def round(self, extent: Extent) -> Extent:
        """The bucket of an extent. Windows stay: they are few, and every token of one costs."""
        return Extent(
            rows=min(rounded(extent.rows), self._most.rows),
            window=extent.window,
            length=min(rounded(max(extent.length, LEAST_LENGTH)), self._most.length),
            sources=min(rounded(max(extent.sources, LEAST_LENGTH)), self._most.sources) if extent.sources else 0,
        )

    def _use(self, bucket: Bucket[Output]) -> Output:
        bucket.uses += 1
        if self._captures and not bucket.is_captured and bucket.uses >= USES_BEFORE_CAPTURE:
            self._capture(bucket)
        return bucket.run()

    def _bucket(self, extent: Extent) -> Bucket[Output]:
        bucket = self._buckets.get(extent)
        if bucket is None:
            if len(self._buckets) == MOST_BUCKETS:
                self._drop()
            bucket = self._buckets[extent] = self._make(extent)
        self._buckets.move_to_end(extent)
        return bucket

    def _drop(self) -> None:
        """The least recently used bucket; a graph may not go while the device still runs it."""
        _, bucket = self._buckets.popitem(last=False)
        if bucket.is_captured and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _capture(self, bucket: Bucket[Output]) -> None:
        try:
            if self._recorder is None:
                self._recorder = Recorder(self._device)
                self._grow_tables()
            bucket.capture(self._recorder, self.warm_ups)
        except RuntimeError as error:
            if self._insist:
                raise
            self._captures = False
            cause = str(error).splitlines()[0] if str(error) else type(error).__name__
            log.warning("%s", {"event": "runner.graphs_off", "extent": tuple(bucket.extent), "cause": cause})


class Graphs(_Buckets[Tensor]):
    """The forwards of a runner."""

    warm_ups = WARM_UPS

    def __init__(self, function: Function, most: Extent, device: torch.device, insist: bool = False) -> None:
        """`most` bounds every extent; `insist` raises where a capture fails, instead of going on without graphs."""
        super().__init__(most, device, insist)
        self._function = function

    def __call__(self, given: Pass) -> Tensor:
        """Hidden states (B, T, d) of slots 0..B-1, to be used up before the next call."""
        bucket = self._bucket(self.round(given.extent))
        assert isinstance(bucket, BucketForwards), "made here"
        bucket.load(given.tokens_BT, given.starts_B)
        return self._use(bucket)[: given.extent.rows]

    def _make(self, extent: Extent) -> BucketForwards:
        return BucketForwards(self._function, extent, self._device)

    def _grow_tables(self) -> None:
        """Such as T5's, which are as long as the longest read so far."""
        self._make(Extent(1, 1, self._most.length, self._most.sources)).run()


class StateGraphs(_Buckets[Output]):
    """A function that changes a state which stays in its place, such as a whole iteration of the engine.

    Tables that grow with what is read are the caller's to grow before.
    """

    warm_ups = 0
    """It may run only when it is asked to; by the time of its capture it has done so a few times."""

    def __init__(
        self, function: Callable[[Extent], Output], most: Extent, device: torch.device, insist: bool = False
    ) -> None:
        """See `Graphs`."""
        super().__init__(most, device, insist)
        self._function = function

    def __call__(self, extent: Extent) -> Output:
        """In the bucket of this extent; what it gives is to be used up before the next call."""
        return self._use(self._bucket(self.round(extent)))

    def _make(self, extent: Extent) -> Bucket[Output]:
        return Bucket(self._function, extent)
