"""AdamW for everything below the classifier, over a few flat tensors instead of a hundred parameters.

The parameters of a kind (matrices or vectors, of the encoder or of a part between it and labels) are views of one
tensor; neighbours are updated together, in buckets: an optimizer step is a few launches a bucket, not a loop over
parameters that waits for the device each time.

Where the encoder computes in bf16, its parameters are bf16 and the bits that bf16 cannot hold lie beside them;
together they are the fp32 master weight. That is 4 bytes a parameter, no casts in forward or backward, 2 bytes of
gradient, and about 2 of moments. With `in_backward` a bucket of matrices is updated as soon as its gradients are
there, which are then dropped: those of the whole encoder never exist at once (as in LOMO, Lv et al. 2023).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from weakref import WeakMethod

import torch
from torch import Tensor, nn

from engine.config import RunConfig
from engine.kernels.adamw8bit import QUANTIZATION_BLOCK, adamw8bit_, new_moments
from engine.kernels.dispatch import triton_problem
from engine.model.features import FeatureModel

BETAS = (0.9, 0.999)
EPS = 1e-8
PIECE = 1 << 22  # elements computed at once: bounds the temporaries of a step to a few times 16 MiB
LOW_OF_ZERO = -0x8000  # see `split`
FIRST_SCALE, SCALE_STEPS = 2.0**14, 2000  # of fp16 gradients; doubled after so many finite steps


@dataclass
class Bucket:
    """Neighbouring parameters of a segment that are updated together: about PIECE elements.

    at: where they lie · waiting: how many gradients of this backward pass are still to come · updated: the last
    step that updated them.
    """

    at: slice
    slots: list[tuple[nn.Parameter, slice]] = field(default_factory=list)
    waiting: int = 0
    updated: int = 0


@dataclass(frozen=True)
class Clipping:
    """norm: fp32 scalar, of the gradients clipped together · most: what it may be, 0 for any · loss_scale: what the
    gradients were multiplied by (the norm is already divided by it)."""

    norm: Tensor
    most: float
    loss_scale: float

    @cached_property
    def scale(self) -> Tensor | None:
        """fp32 scalar by which gradients are multiplied to undo their scaling and to clip them; None for 1."""
        if self.most:
            return (self.most / (self.norm + 1e-6)).clamp(max=1.0) / self.loss_scale
        return torch.full_like(self.norm, 1.0 / self.loss_scale) if self.loss_scale != 1.0 else None


class Segment:
    """Parameters of one kind as views of `value`, with their master bits and moments.

    value [N], bf16 or fp32 · low [N] int16 with bf16, else None · moments: 8 bit, or two fp32 [N] · slots: where
    each parameter lies. Every slot starts at a multiple of QUANTIZATION_BLOCK; what lies between slots stays zero ·
    fused: updated by one kernel a bucket · kept [N]: gradients, where they have fixed places.
    """

    def __init__(
        self,
        name: str,
        parameters: list[nn.Parameter],
        *,
        learning_rate: float,
        weight_decay: float,
        eight_bit: bool,
        dtype: torch.dtype,
        device: torch.device,
        in_backward: bool,
        fused: bool = False,
    ) -> None:
        self.fused = fused and eight_bit and dtype == torch.bfloat16
        self.name, self.learning_rate, self.weight_decay, self.eight_bit = name, learning_rate, weight_decay, eight_bit
        self.in_backward = in_backward
        self.slots: list[tuple[nn.Parameter, slice]] = []
        end = 0
        for parameter in parameters:
            self.slots.append((parameter, slice(end, end + parameter.numel())))
            end += -(-parameter.numel() // QUANTIZATION_BLOCK) * QUANTIZATION_BLOCK
        self.value = torch.zeros(end, dtype=dtype, device=device)
        self.low = None
        if dtype == torch.bfloat16:
            self.low = torch.full((end,), LOW_OF_ZERO, dtype=torch.int16, device=device)
        if eight_bit:
            self.moments = new_moments(end, device)
        else:
            self.moments = {name: torch.zeros(end, device=device) for name in ("moment1", "moment2")}
        for parameter, slot in self.slots:
            flat = parameter.data.reshape(-1)
            for first, last in _pieces(slot):
                self._put(first, last, flat[first - slot.start : last - slot.start].to(device, torch.float32))
            parameter.data = self.value[slot].view(parameter.shape)
        self.kept: Tensor | None = None
        self.buckets = self._buckets()
        self.padding = torch.zeros(QUANTIZATION_BLOCK, dtype=dtype, device=device)

    def tensors(self) -> dict[str, Tensor]:
        """Everything a checkpoint needs, by name; no copies."""
        low = {} if self.low is None else {"low": self.low}
        return {f"{self.name}.{key}": t for key, t in {"value": self.value, **low, **self.moments}.items()}

    def _buckets(self) -> list[Bucket]:
        """All parameters, in runs of about PIECE elements."""
        found: list[Bucket] = []
        for parameter, slot in self.slots:
            if not found or slot.stop - found[-1].at.start > PIECE:
                found.append(Bucket(slot))
            found[-1].slots.append((parameter, slot))
            found[-1].at = slice(found[-1].at.start, slot.stop)
        return found

    def gradient(self, bucket: Bucket) -> Tensor:
        """The gradients of a bucket's parameters, flat; drops theirs."""
        if self.kept is not None:
            return self.kept[bucket.at]
        parts = []
        for parameter, slot in bucket.slots:
            count = slot.stop - slot.start
            parts.append(parameter.data.new_zeros(count) if parameter.grad is None else parameter.grad.reshape(-1))
            if count % QUANTIZATION_BLOCK:
                parts.append(self.padding[: -count % QUANTIZATION_BLOCK])
            parameter.grad = None
        return torch.cat(parts)[: bucket.at.stop - bucket.at.start] if len(bucket.slots) > 1 else parts[0]

    def update(self, at: slice, grad: Tensor, clipping: Clipping, step: int, factor: float) -> None:
        """Moves the elements `at`; grad: theirs, flat, any float dtype."""
        learning_rate = self.learning_rate * factor
        if self.fused:
            from engine.kernels.triton_adamw8bit import adamw8bit_halves_

            assert clipping.loss_scale == 1.0
            adamw8bit_halves_(
                self.value, self.low, grad, self.moments, at.start, clipping.norm, clipping.most, step=step,
                learning_rate=learning_rate, betas=BETAS, eps=EPS, weight_decay=self.weight_decay,
            )  # fmt: skip
            return
        scale = clipping.scale
        for first, last in _pieces(at):
            weight = self._master(first, last)
            part = grad[first - at.start : last - at.start].float()
            part = part if scale is None else part * scale
            if self.eight_bit:
                adamw8bit_(
                    weight, part, self.moments, first, step=step, learning_rate=learning_rate, betas=BETAS, eps=EPS,
                    weight_decay=self.weight_decay,
                )  # fmt: skip
            else:
                moments = (self.moments[name][first:last] for name in ("moment1", "moment2"))
                _adamw_(weight, part, *moments, step, learning_rate, self.weight_decay)
            if self.low is not None:  # else `weight` is a view and has moved
                self._put(first, last, weight)

    def _master(self, first: int, last: int) -> Tensor:
        """fp32 [n]; a view where the parameters are fp32."""
        value = self.value[first:last]
        return value if self.low is None else join(value, self.low[first:last])

    def _put(self, first: int, last: int, weight: Tensor) -> None:
        if self.low is None:
            self.value[first:last] = weight
        else:
            self.value[first:last], self.low[first:last] = split(weight)


class FlatAdamW:
    """The optimizer of a run. `grad_norm`: of the last step, fp32 scalar, before clipping."""

    def __init__(self, segments: list[Segment], clip_norm: float, scales: bool) -> None:
        self.segments, self.clip_norm = segments, clip_norm
        self.scale = FIRST_SCALE if scales else 1.0
        self.scales, self.good_steps = scales, 0
        self.grad_norm = torch.zeros((), device=segments[0].value.device)
        self.bucket_of: dict[int, tuple[Segment, Bucket]] = {}
        hook = partial(_call_if_alive, WeakMethod(self._gradient_is_there))
        for segment in segments:
            for bucket in segment.buckets if segment.in_backward else ():
                for parameter, _ in bucket.slots:
                    self.bucket_of[id(parameter)] = segment, bucket
                    parameter.register_post_accumulate_grad_hook(hook)

    @contextmanager
    def stepping(self, step: int, factor: float) -> Iterator[None]:
        """Around the backward passes of a step (counted from 1) at `factor` of the peak learning rates.

        A step that fails, out of memory, may be taken again: what it has updated is not updated twice.
        """
        self.step, self.factor = step, factor
        self.norms: list[Tensor] = []  # of the buckets updated in backward
        try:
            yield
            self._update()
        finally:
            for segment in self.segments:
                for bucket in segment.buckets:
                    bucket.waiting = 0
                    for parameter, _ in bucket.slots:
                        parameter.grad = None

    def keep_gradients(self) -> list[tuple[nn.Parameter, Tensor]]:
        """From here on gradients are taken from fixed places, these, and not from the parameters."""
        assert not self.bucket_of, "what is updated in backward has no gradient left"
        places = []
        for segment in self.segments:
            segment.kept = torch.zeros_like(segment.value)
            places += [(parameter, segment.kept[slot].view(parameter.shape)) for parameter, slot in segment.slots]
        return places

    def drop_gradients(self) -> None:
        """Ends `keep_gradients`."""
        for segment in self.segments:
            segment.kept = None

    def step_after_backward(self) -> None:
        """Ends updating in backward: batches are now taken in several passes."""
        for segment in self.segments:
            segment.in_backward = False

    @torch.no_grad()
    def _update(self) -> None:
        """Everything that was not updated in backward."""
        later = [segment for segment in self.segments if not segment.in_backward]
        grads = [segment.kept for segment in later if segment.kept is not None]
        if not grads:
            slots = [slot for segment in later for slot in segment.slots]
            grads = [parameter.grad for parameter, _ in slots if parameter.grad is not None]
        norms = torch._foreach_norm(grads, 2, dtype=torch.float32)
        norm = torch.linalg.vector_norm(torch.stack(norms)) / self.scale
        self.grad_norm = torch.linalg.vector_norm(torch.stack([*self.norms, norm]))
        if self.scales and not self._is_finite(norm):
            return
        clipping = Clipping(norm, self.clip_norm, self.scale)
        for segment in later:
            for bucket in segment.buckets:
                self._update_bucket(segment, bucket, segment.gradient(bucket), clipping)

    def _update_bucket(self, segment: Segment, bucket: Bucket, grad: Tensor, clipping: Clipping) -> None:
        if bucket.updated != self.step:
            segment.update(bucket.at, grad, clipping, self.step, self.factor)
            bucket.updated = self.step

    def scaled(self, gradient: Tensor) -> Tensor:
        """The gradient of the loss as it is backpropagated: fp16 gradients are scaled on their way."""
        return gradient * self.scale if self.scales else gradient

    def tensors(self) -> dict[str, Tensor]:
        return {name: tensor for segment in self.segments for name, tensor in segment.tensors().items()}

    def numbers(self) -> dict[str, float]:
        """The part of the state that is not in tensors."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load_numbers(self, numbers: dict[str, float]) -> None:
        self.scale, self.good_steps = numbers["scale"], int(numbers["good_steps"])

    @torch.no_grad()
    def _gradient_is_there(self, parameter: nn.Parameter) -> None:
        """Updates a bucket with the last of its gradients. Without all gradients there is no norm over all of them:
        a bucket is clipped by its own."""
        segment, bucket = self.bucket_of[id(parameter)]
        if not segment.in_backward:
            return
        bucket.waiting = (bucket.waiting or len(bucket.slots)) - 1
        if bucket.waiting:
            return
        grad = segment.gradient(bucket)
        norm = torch.linalg.vector_norm(grad, dtype=torch.float32)
        self._update_bucket(segment, bucket, grad, Clipping(norm, self.clip_norm, self.scale))
        self.norms.append(norm)

    def _is_finite(self, norm: Tensor) -> bool:
        """Whether the scaled gradients were; else the step is left out and the scale halved."""
        finite = bool(torch.isfinite(norm))
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.scale /= 2.0
        elif self.good_steps % SCALE_STEPS == 0:
            self.scale *= 2.0
        return finite


def _call_if_alive(method: WeakMethod, parameter: nn.Parameter) -> None:
    """A hook that does not keep the optimizer: torch hides a parameter's hooks from Python's garbage collector."""
    if (alive := method()) is not None:
        alive(parameter)


def make_optimizer(
    model: FeatureModel, config: RunConfig, device: torch.device, dtype: torch.dtype, in_backward: bool, scales: bool
) -> FlatAdamW | None:
    """Moves the trainable parameters to `device` in `dtype` (bf16 or fp32) and returns their optimizer.

    None where nothing below the classifier trains. scales: gradients are fp16 on their way. Biases and
    normalisation weights have fp32 moments and no decay; matrices have 8-bit moments unless `adamw` is configured,
    those of an adapter never: a frozen encoder by itself needs no bitsandbytes, a library larger than what it saves.
    Where Triton works and is not turned off (classifier.backend=torch), one kernel updates bf16 matrices.
    """
    assert not (in_backward and scales), "scaled gradients have to be checked before the first update"
    c = config.encoder
    fused = config.classifier.backend != "torch" and triton_problem(device) is None
    parts = []
    if model.encoder is not None:
        parts.append(("encoder", model.encoder, c.learning_rate, c.weight_decay))
    parts += [(name, part, config[f"{name}.learning_rate"], 0.0) for name, part in model.head.parts().items()]
    segments = []
    for name, module, learning_rate, decay in parts:
        parameters = [p for p in module.parameters() if p.requires_grad]
        for kind, chosen in (
            ("matrices", [p for p in parameters if p.ndim > 1]),
            ("vectors", [p for p in parameters if p.ndim <= 1]),
        ):
            if chosen:
                is_matrix = kind == "matrices"
                segments.append(
                    Segment(
                        f"{name}.{kind}",
                        chosen,
                        learning_rate=learning_rate,
                        weight_decay=decay if is_matrix else 0.0,
                        eight_bit=is_matrix and c.optimizer == "adamw8bit" and name != "adapter",
                        dtype=dtype,
                        device=device,
                        in_backward=in_backward and is_matrix,
                        fused=fused,
                    )
                )
    return FlatAdamW(segments, c.clip_norm, scales) if segments else None


def split(weight: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 → (its bf16, rounded to nearest, and int16 bits with which `join` gives the same fp32 back).

    The upper and lower half of the bits after adding half a unit of the last bf16 place. They are views of one
    tensor, in which `weight` is overwritten (fp32 is stored with its lower half first on every machine torch runs on).
    """
    halves = weight.view(torch.int32).add_(0x8000).view(torch.int16).view(-1, 2)
    return halves[:, 1].view(torch.bfloat16), halves[:, 0]


def join(value: Tensor, low: Tensor) -> Tensor:
    """The inverse of `split`; a new tensor."""
    halves = torch.stack((low, value.view(torch.int16)), dim=1)
    return halves.view(torch.int32).sub_(0x8000).view(torch.float32)[:, 0]


def _pieces(at: slice) -> Iterator[tuple[int, int]]:
    for first in range(at.start, at.stop, PIECE):
        yield first, min(first + PIECE, at.stop)


def _adamw_(
    weight: Tensor, grad: Tensor, moment1: Tensor, moment2: Tensor, step: int, learning_rate: float, decay: float
) -> None:
    """AdamW with fp32 moments (Loshchilov & Hutter 2019, algorithm 2), in place."""
    moment1.lerp_(grad, 1.0 - BETAS[0])
    moment2.lerp_(grad.square(), 1.0 - BETAS[1])
    denominator = moment2.div(1.0 - BETAS[1] ** step).sqrt_().add_(EPS)
    weight.mul_(1.0 - learning_rate * decay)
    weight.addcdiv_(moment1, denominator, value=-learning_rate / (1.0 - BETAS[0] ** step))
