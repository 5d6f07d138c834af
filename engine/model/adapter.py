"""What is trained on a frozen encoder's features before the classifier reads them.

A sum of them and of what a small network makes of them (residual adapter: Houlsby et al. 2019; on the features of whole
texts, before a classifier of very many labels: Dahiya et al. 2021, DeepXML), as wide as the inner layer of a
transformer (Vaswani et al. 2017). It fits the features to the labels at hand, which the encoder cannot do any more. Its
output begins at 0: so do the weights of the network's last layer.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import gelu


class Adapter(nn.Module):
    """x + up(gelu(down(x))), of D features each; `hidden` numbers lie between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x_BD: Tensor) -> Tensor:
        return x_BD + self.up(gelu(self.down(x_BD)))
