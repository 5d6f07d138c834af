"""The two ways a dense last layer is trained elsewhere, to be measured beside the sparse one.

`ChunkedSGD` is ELMO's scheme (low-precision weights, one chunk of labels at a time, plain SGD inside the step,
stochastic rounding); `AutogradAdam` is Renée's (fp32 weights, mixed precision, the whole layer as one autograd
operation, Adam). Neither has a bias. Both are the schemes, not their authors' code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

from engine.kernels.dispatch import triton_problem
from engine.kernels.layer import Positives

# Of one chunk's [R, max(B, D)] tensor in fp32: large enough to fill a GPU, small enough for a CPU's caches.
CHUNK_BYTES = {"cpu": 16 * 2**20, "cuda": 1024 * 2**20}


class ChunkedSGD:
    """weight_LD: bf16, updated in place. Nothing of the size B x L or L x D exists beside it."""

    def __init__(self, weight_LD: Tensor, learning_rate: float, seed: int = 0) -> None:
        self.weight_LD, self.learning_rate = weight_LD, learning_rate
        self.generator = torch.Generator(weight_LD.device).manual_seed(seed)
        self.fused = triton_problem(weight_LD.device) is None
        self.steps = 0  # done

    def step(self, x_BD: Tensor, positives: Positives) -> Tensor:
        """One step of binary cross-entropy, summed over labels, mean over the batch; returns dx_BD in fp32."""
        labels, width = self.weight_LD.shape
        rows = chunk_rows(len(x_BD), width, labels, x_BD.device.type)
        rate = self.learning_rate / len(x_BD)
        dx_BD = torch.zeros(x_BD.shape, device=x_BD.device)
        x_BD = x_BD.bfloat16()
        noise_RD = None if self.fused else self._noise(rows, width)
        for first in range(0, labels, rows):
            weight_RD = self.weight_LD[first : first + rows]
            grad_BR = (x_BD @ weight_RD.T).sigmoid_()
            row, instance = positives.between(first, first + len(weight_RD))
            grad_BR[instance, row] -= 1.0
            dx_BD += grad_BR @ weight_RD
            self._update(weight_RD, grad_BR.T @ x_BD, rate, first, noise_RD)
        self.steps += 1
        return dx_BD / len(x_BD)

    def _update(self, weight_RD: Tensor, grad_RD: Tensor, rate: float, first: int, noise_RD: Tensor | None) -> None:
        if noise_RD is not None:
            sgd_(weight_RD, grad_RD, rate, noise_RD[: len(weight_RD)])
            return
        from engine.bench import dense_triton

        dense_triton.sgd_(weight_RD, grad_RD, rate, self.steps, first)

    def _noise(self, rows: int, width: int) -> Tensor:
        """16 random bits an element, int32; one draw a step, as the chunks' rounding need not be independent."""
        noise = torch.empty(rows, width, dtype=torch.int32, device=self.weight_LD.device)
        return noise.random_(0, 2**16, generator=self.generator)


def chunk_rows(batch: int, width: int, labels: int, device: str) -> int:
    """Labels a chunk: chunks of equal size, none above CHUNK_BYTES."""
    most = max(1, CHUNK_BYTES[device] // (4 * max(batch, width)))
    return -(-labels // -(-labels // most))


def sgd_(weight_RD: Tensor, grad_RD: Tensor, rate: float, noise_RD: Tensor) -> None:
    """weight -= rate * grad in place, in fp32, stochastically rounded to bf16: weight and grad bf16, noise below 2**16.

    Random bits are added below the last one that bf16 keeps of the fp32 pattern, then the lower half is cut off.
    """
    value_RD = weight_RD.float().sub_(grad_RD, alpha=rate)
    value_RD.view(torch.int32).add_(noise_RD)
    weight_RD.view(torch.int16).copy_(value_RD.view(torch.int16)[:, 1::2])  # little-endian: the upper half


class AutogradAdam:
    """weight_LD: fp32; made trainable and updated in place. Logits, gradients and both moments exist in full."""

    def __init__(self, weight_LD: Tensor, learning_rate: float) -> None:
        self.weight_LD = weight_LD.requires_grad_()
        self.optimizer = torch.optim.Adam([weight_LD], lr=learning_rate, fused=True)

    def step(self, x_BD: Tensor, positives: Positives) -> tuple[Tensor, Tensor]:
        """(dx_BD fp32, loss before the update); the loss is that of `ChunkedSGD.step`."""
        x_BD = x_BD.detach().float().requires_grad_()
        target_BL = torch.zeros(len(x_BD), len(self.weight_LD), device=x_BD.device)
        target_BL[positives.instance, positives.label] = 1.0
        with torch.autocast(x_BD.device.type, dtype=torch.bfloat16):
            logits_BL = nnf.linear(x_BD, self.weight_LD)
            loss = nnf.binary_cross_entropy_with_logits(logits_BL, target_BL, reduction="sum") / len(x_BD)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return x_BD.grad, loss.detach()


def chunked_sgd_bytes(labels: int, width: int, batch: int, device: torch.device) -> int:
    """Peak of ChunkedSGD: weights, and of one chunk logits, gradient and, in plain torch, fp32 value and noise."""
    rows = chunk_rows(batch, width, labels, device.type)
    a_weight = 2 if triton_problem(device) is None else 10
    return 2 * labels * width + rows * (a_weight * width + 4 * batch)


def autograd_adam_bytes(labels: int, width: int, batch: int) -> int:
    """Peak of AutogradAdam, the larger of two moments, in bytes a weight and a logit.

    All the time fp32 weights and two fp32 moments: 12 a weight. In the loss, also the bf16 weights (2) that the
    products read; of the logits bf16 (2) and fp32 (4) copies, targets (4) and two terms of the loss (4 each). At the
    end of the backward pass, also the gradient as the product gives it (2) and as Adam takes it (4), and of the
    logits their bf16 gradient (2), fp32 copy (4) and targets (4).
    """
    weights, logits = labels * width, labels * batch
    return max(14 * weights + 18 * logits, 20 * weights + 10 * logits)
