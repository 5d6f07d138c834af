"""The k best labels seen so far, over blocks of logits that are looked at once.

Shape suffixes: B instances, of which A are looked at closely, C runs of N consecutive labels, of which S are
selected, K best labels kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class RunningBest:
    """value_BK: fp32, descending; id_BK: int64. Before anything was added: -inf and -1."""

    value_BK: Tensor
    id_BK: Tensor

    @classmethod
    def empty(cls, batch: int, k: int, device: torch.device) -> RunningBest:
        value = torch.full((batch, k), -torch.inf, device=device)
        return cls(value, torch.full((batch, k), -1, dtype=torch.int64, device=device))

    def add(self, logits_CBN: Tensor, start: int) -> None:
        """Takes in the labels start, start + 1, ... of C * N logits an instance.

        The k best labels lie in the k runs whose best labels are best: only those runs are sorted, and only where
        one of them is better than the last label kept.
        """
        runs, _, length = logits_CBN.shape
        k = self.value_BK.shape[1]
        best_CB = logits_CBN.amax(2)
        at = (~(best_CB.amax(0) <= self.value_BK[:, -1])).nonzero().view(-1)  # so that NaN is not passed over
        if len(at) == 0:
            return
        run_AS = best_CB.T[at].topk(min(k, runs), dim=1, sorted=False).indices
        chosen = logits_CBN[run_AS, at[:, None]].flatten(1)
        value, place = chosen.topk(min(k, chosen.shape[1]), dim=1, sorted=False)
        label = run_AS.gather(1, place // length) * length + place % length + start
        self.value_BK[at], order = torch.cat([self.value_BK[at], value], dim=1).topk(k, dim=1)
        self.id_BK[at] = torch.cat([self.id_BK[at], label], dim=1).gather(1, order)
