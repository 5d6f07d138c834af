"""What a pass through a text encoder keeps and needs in bytes, counted from the tensors that autograd saves.

Shape suffixes: B texts, T tokens each, N = B * T, D features, I inner width, H heads. A layer saves its input, q, k,
v, what attention gives, both inputs of a normalisation and the output of the first, the inputs of the activation
function and of the product behind it, the masks of dropout, the logarithms of attention's sums (4 bytes a token and
head) and two numbers a token and normalisation. Fused attention keeps no T x T matrix of a head; where layers see
different windows, or a model makes its masks itself, a batch with padding costs one additive mask [B, 1, T, T] a
layer. Compare Korthikanti et al. 2022, section 4: 34 bytes a token and feature
of a 16-bit layer with I = 4 D.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.planning.encoders import EncoderShape

MIB = 2**20
ROUNDING, LARGE = MIB // 5, MIB  # of the allocator: what a tensor above LARGE takes beyond its size, on average
SEGMENT, ROUND = 20 * MIB, 2 * MIB  # in which it places those between LARGE and half of this; of larger ones' segments
BIAS_MULTIPLE = 16  # columns to which memory-efficient attention fills up its mask
# torch sums over rows, as for the gradient of a bias, in blocks of SUM_OUTPUTS columns, which are SUM_BLOCKS in all on
# an H100 or H200 (16 a multiprocessor) and fewer on smaller cards; each writes SUM_BYTES a column of its own.
SUM_OUTPUTS, SUM_BLOCKS, SUM_BYTES = 128, 16 * 132, 4 * 128
SUM_ROWS = 4 * 256  # fewer rows are summed by one block


@dataclass(frozen=True)
class Precision:
    """Bytes of an element: value, of most activations · norm, of what is normalised · mask, of a dropout mask.

    parameter: of what the optimizer moves · copies: of a layer's input, one for each of q, k and v under autocast.
    """

    value: int
    norm: int
    mask: int
    parameter: int
    copies: int = 1

    @classmethod
    def of(cls, compute: str, device: str) -> Precision:
        """bf16 and fp32 are used throughout; fp16 is autocast over fp32 parameters."""
        if compute == "fp16":
            return cls(2, 4, 1, 4, 3)
        size = 2 if compute == "bf16" else 4
        return cls(size, size, 1 if device == "cuda" else size, size)


@dataclass(frozen=True)
class Activations:
    """Of an encoder over `batch` texts of `tokens` tokens. padded: whether some of the texts are shorter."""

    encoder: EncoderShape
    precision: Precision
    batch: int
    tokens: int
    device: str = "cuda"
    padded: bool = True

    @property
    def count(self) -> int:
        """N"""
        return self.batch * self.tokens

    def layer(self) -> int:
        """What one layer saves, its input included."""
        e, p = self.encoder, self.precision
        wide, inner, statistics = self.count * e.hidden, self.count * e.intermediate, 16 * self.count
        if e.gated:
            # two inputs and outputs of normalisations, qkv, rotated q and k, attention's output; gate, both halves
            large = wide * (10 * p.value) + inner * (4 * p.value)
            masks = wide * p.mask * (e.dropout > 0)
        else:
            large = wide * ((5 + p.copies) * p.value + 2 * p.norm) + inner * 2 * p.value
            masks = wide * p.mask * (1 if e.model_type == "distilbert" else 2) * (e.dropout > 0)
        tensors = (large + masks) // max(1, wide * p.value)
        return large + masks + statistics + self.attention() + self.rounding(wide * p.value, tensors)

    def attention(self) -> int:
        """What attention saves beside q, k, v and its output."""
        e, p = self.encoder, self.precision
        pairs = self.batch * self.tokens * self.tokens
        drops = e.attention_dropout > 0
        if not e.fused_attention or (self.device == "cpu" and drops):  # a CPU's fused attention has no dropout
            return pairs * e.heads * (p.value + (p.value + p.mask) * drops)
        has_mask = not e.shares_mask and (self.padded or 0 < e.window <= self.tokens)
        filled = -(-self.tokens // BIAS_MULTIPLE) * BIAS_MULTIPLE
        return 4 * self.count * e.heads + has_mask * self.count * filled * p.value

    def embedding(self) -> int:
        """What looking up and normalising the tokens saves, and the tokens themselves."""
        e, p = self.encoder, self.precision
        return self.count * (e.hidden * (p.norm + p.mask * (e.dropout > 0)) + 8 + 4 * 8)

    def rounding(self, size: int, tensors: int) -> int:
        """What the allocator adds to `tensors` tensors of about `size` bytes."""
        return tensors * min(ROUNDING, size // 10) if self.device == "cuda" and size > LARGE else 0

    def holes(self) -> int:
        """What is left over between tensors of the layers where the allocator cannot give their memory to others: two
        of 9 MiB take a segment of SEGMENT, and what remains is too small for a mask of half their size; one of 11 MiB
        takes a segment of 12."""
        size = self.count * self.encoder.hidden * self.precision.value
        if self.device != "cuda" or size <= LARGE:
            return 0
        tensors = self.encoder.layers * (10 if self.encoder.gated else 8)
        if size >= SEGMENT // 2:
            return tensors * (-size % ROUND)
        fit = SEGMENT // size
        return tensors * ((SEGMENT - fit * size) % (size // 2)) // fit

    def boundary(self) -> int:
        """What is left of a layer that backward computes again: its input."""
        size = self.count * self.encoder.hidden * self.precision.norm
        return size + self.rounding(size, 1)

    def saved(self, checkpoint_every: int) -> int:
        """At the end of forward; checkpoint_every: 0, or n where the first of every n layers is computed again."""
        layers = self.encoder.layers
        again = -(-layers // checkpoint_every) if checkpoint_every else 0
        return self.embedding() + (layers - again) * self.layer() + again * self.boundary() + self.cast_weights()

    def backward_peak(self, checkpoint_every: int, weight_gradients: int = 0) -> int:
        """Most during backward: saved activations, those of a layer computed again, and its gradients.

        weight_gradients: what every layer leaves behind.
        """
        saved, layer, boundary = self.saved(checkpoint_every), self.layer(), self.boundary()
        most, alive = 0, saved
        for number in reversed(range(self.encoder.layers)):
            again = bool(checkpoint_every) and number % checkpoint_every == 0
            output = self.count * self.encoder.hidden * self.precision.norm  # of a layer computed again
            most = max(most, alive + (layer - boundary + output if again else 0))
            alive += weight_gradients - (boundary if again else layer)
        return most + self.gradients()

    def gradients(self) -> int:
        """While the inner half of a layer goes backward: the gradients of its two inner tensors and of its output,
        less a mask that is no longer needed."""
        e, p = self.encoder, self.precision
        inner, wide = self.count * e.intermediate * p.value, self.count * e.hidden * p.value
        if e.gated:
            return 4 * inner + 2 * wide
        mask = self.count * e.hidden * p.mask if e.dropout > 0 and p.mask == 1 else 0
        # later the inner tensors are gone, and the gradient of the inner bias is summed
        return max(2 * inner, self.bias_sum() - inner) + wide - mask

    def bias_sum(self) -> int:
        """What torch takes to sum the gradient of the inner product's bias over all tokens."""
        if self.device != "cuda" or self.count < SUM_ROWS:
            return 0
        columns, values = self.encoder.intermediate, self.count // 4  # rows of each of a block's four threads
        blocks = max(min(-(-SUM_BLOCKS * SUM_OUTPUTS // columns), -(-values // 16)), -(-values // 256))
        return SUM_BYTES * columns * blocks

    def after_first_layers(self, checkpoint_every: int, layers: int) -> int:
        """What is alive when backward has passed the last `layers` layers and the inner half of the one below."""
        e, p = self.encoder, self.precision
        layers = min(layers, e.layers - 1)
        passed = 0
        for number in reversed(range(e.layers - layers, e.layers)):
            again = bool(checkpoint_every) and number % checkpoint_every == 0
            passed += self.boundary() if again else self.layer()
        again = bool(checkpoint_every) and (e.layers - layers - 1) % checkpoint_every == 0
        again_bytes = self.layer() + self.count * e.hidden * p.norm if again else 0
        return self.saved(checkpoint_every) - passed + again_bytes + self.count * e.hidden * p.value

    def forward_peak(self) -> int:
        """Most without a graph: the inner tensors of a layer beside its input, attention's output and the input of
        the first layer; or attention's matrices where they are made."""
        e, p = self.encoder, self.precision
        wide, inner = self.count * e.hidden * p.norm, self.count * e.intermediate * p.value
        pairs = self.batch * self.tokens * self.tokens * e.heads * p.value
        matrices = 0 if e.fused_attention else 3 * pairs
        return 3 * wide + max((4 if e.gated else 2) * inner, 3 * wide + matrices) + 16 * self.count

    def cast_weights(self) -> int:
        """16-bit copies of the layers' matrices, which autocast makes once a pass and backward reads."""
        return 2 * sum(self.encoder.matrices[2:]) if self.precision.copies > 1 else 0
