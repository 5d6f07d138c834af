"""All that lies below the classifier as CUDA graphs, forward and backward: two launches instead of several hundred.

A small encoder's pass over short texts takes the GPU a few milliseconds and the host tens of them, which starts kernel
after kernel. A graph is recorded once for every shape of a batch and started as a whole (NVIDIA, CUDA programming
guide, section *CUDA Graphs*). So that there are few shapes, texts are filled up to the lengths of
`engine.data.batches.rounded`.

What a graph reads and writes lies at fixed places: inputs and features here, gradients where the optimizer looks for
them, everything between in one pool that the graphs of all shapes share, because one of them has ended before the next
begins.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.errors import EnvironmentProblem
from engine.model.features import Inputs
from engine.model.recompute import seed_dropout
from engine.peak_memory import graphs_keep
from engine.training.recovery import is_out_of_memory

TRIAL_TOKENS, TRIAL_SEED = 8, 1


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Within, what waits for the device raises RuntimeError."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this mode is new
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@dataclass
class _Recorded:
    """Of a shape; the second once a batch of it has come to its backward pass."""

    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph | None = None


class GraphedPass:
    """`features` and `backward` of one batch after the other, as a model would compute them with dropout."""

    def __init__(
        self,
        model: nn.Module,
        gradients: list[tuple[nn.Parameter, Tensor]],
        batch: int,
        tokens: int,
        width: int,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager],
    ) -> None:
        """gradients: where those of each parameter will lie · batch, tokens: the most there will be · width: of the
        features. Records nothing yet."""
        self.model, self.autocast, self.device = model, autocast, device
        self.ids = torch.zeros(batch * tokens, dtype=torch.int64, device=device)
        self.mask = torch.zeros_like(self.ids)
        self.x_BD = torch.zeros(batch, width, device=device)
        self.dx_BD = torch.zeros_like(self.x_BD)
        self.parameters, self.gradients = zip(*gradients, strict=True)
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.recorded: dict[tuple[int, int], _Recorded] = {}
        self.shape = (0, 0)
        self.with_graph: Tensor | None = None  # features of a batch whose backward pass is to be recorded
        weakref.finalize(self, graphs_keep, device, id(self), 0).atexit = False

    def features(self, inputs: Inputs, seed: int) -> Tensor:
        """inputs: input_ids and attention_mask, int64 [B, T] on the device · seed: of dropout.

        Returns fp32 [B, D], which the next call overwrites.
        """
        self.shape = tuple(inputs[0].shape)
        own = self._inputs()
        for place, given in zip(own, inputs, strict=True):
            place.copy_(given)
        recorded = self.recorded.get(self.shape)
        if recorded is None or recorded.backward is None:
            with self._recording() as graph:
                self.with_graph = self._compute(own)
                self.x_BD[: self.shape[0]].copy_(self.with_graph.detach())
            self.recorded[self.shape] = _Recorded(graph)
            self._look_at_pool()
        seed_dropout(seed, self.device)
        self.recorded[self.shape].forward.replay()
        return self.x_BD[: self.shape[0]]

    def backward(self, gradient_BD: Tensor) -> None:
        """Leaves the parameters' gradients at their places; gradient_BD: fp32 [B, D], of the last features."""
        dx_BD, recorded = self.dx_BD[: self.shape[0]], self.recorded[self.shape]
        dx_BD.copy_(gradient_BD)
        if recorded.backward is None:
            with self._recording() as graph:
                self._differentiate(self.with_graph, dx_BD)
            recorded.backward, self.with_graph = graph, None
            self._look_at_pool()
        recorded.backward.replay()

    def problem(self) -> str | None:
        """Why this model's pass cannot be recorded here, or None: tried with a short text, which is forgotten again.

        Whatever waits for the device is found without recording it: torch draws no more dropout after a recording that
        the driver has broken off.
        """
        self.shape = (1, min(TRIAL_TOKENS, self.ids.numel()))
        inputs = self._inputs()
        for place in inputs:
            place.fill_(1)
        self.dx_BD.fill_(1.0)
        try:
            with self._on_stream(), _no_waiting():  # also prepares libraries, which cannot be recorded
                seed_dropout(TRIAL_SEED, self.device)
                x_BD = self._compute(inputs)
                self._differentiate(x_BD, self.dx_BD[:1])
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            return str(error).splitlines()[0]
        wanted = [x_BD.detach().clone(), *(gradient.clone() for gradient in self.gradients)]
        del x_BD
        torch._foreach_zero_(self.gradients)
        found = [self.features(inputs, TRIAL_SEED), *self.gradients]
        self.backward(self.dx_BD[:1].clone())
        pairs = zip(wanted, found, strict=True)
        same = all(torch.allclose(a, b, rtol=1e-2, atol=1e-4) for a, b in pairs)
        self.recorded.clear()
        self.pool = torch.cuda.graph_pool_handle()  # empty, so that what lies in it fits the batches that come
        torch.cuda.empty_cache()
        graphs_keep(self.device, id(self), 0)
        return None if same else "they compute something else than the model"

    def _inputs(self) -> Inputs:
        """The places of input_ids and attention_mask for a batch of this shape."""
        texts, tokens = self.shape
        return tuple(flat[: texts * tokens].view(texts, tokens) for flat in (self.ids, self.mask))

    def _compute(self, inputs: Inputs) -> Tensor:
        with self.autocast():
            return self.model(inputs).float()

    def _differentiate(self, x_BD: Tensor, dx_BD: Tensor) -> None:
        found = torch.autograd.grad(x_BD, self.parameters, dx_BD, allow_unused=True)
        pairs = [(own, new) for own, new in zip(self.gradients, found, strict=True) if new is not None]
        torch._foreach_copy_([own for own, _ in pairs], [new for _, new in pairs])

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            current.wait_stream(self.stream)

    @contextmanager
    def _recording(self) -> Iterator[torch.cuda.CUDAGraph]:
        """Records what the body launches; the thread that loads batches may go on with what it does."""
        graphs_keep(self.device, id(self), 0)  # what is free may be used now
        torch.cuda.empty_cache()  # torch gives no cached memory back meanwhile
        graph = torch.cuda.CUDAGraph()
        collects = gc.isenabled()
        gc.disable()  # what is freed meanwhile may call what must not be recorded
        try:
            with self._on_stream():
                try:
                    graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
                    yield graph
                    graph.capture_end()
                except BaseException as error:
                    with suppress(RuntimeError):
                        graph.capture_end()
                    if not self.recorded:  # torch forgets a pool without graphs
                        self.pool = torch.cuda.graph_pool_handle()
                    if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                        what = f"CUDA graphs do not work here: {str(error).splitlines()[0]}"
                        raise EnvironmentProblem(f"{what}; set encoder.cuda_graphs = off") from error
                    raise
        finally:
            if collects:
                gc.enable()

    def _look_at_pool(self) -> None:
        """Tells what of the pool is free for graphs alone."""
        segments = torch.cuda.memory_snapshot(self.pool)
        graphs_keep(self.device, id(self), sum(s["total_size"] - s["allocated_size"] for s in segments))
