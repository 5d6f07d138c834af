"""Models made in code: random weights over any encoder, nothing trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path


def make_bundle(
    path: Path,
    encoder_folder: Path,
    labels: int,
    *,
    head: int = 8,
    fan_in: int = 8,
    group_size: int = 4,
    intermediate: int = 0,
    centered: bool = False,
    weight_dtype: str = "fp32",
    loss: str = "bce",
    pooling: str = "mean",
    tokens: int = 16,
    words: int = 0,
    pairs_of: Sequence[str] = (),
    clusters: int = 0,
    coarse: int = 0,
    lead: int = 0,
    adapter: int = 0,
) -> Path:
    """A model bundle in `path`, its labels named label-0, label-1, ..., in a shuffled label order.

    pairs_of: texts of which the neighbouring pieces are words, too, where labels read any · lead: how many of the head
    labels read them all.
    """
    from itertools import pairwise

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    from engine.data.label_order import LabelOrder
    from engine.kernels.dispatch import resolve_backend
    from engine.model.bundle import BundleInfo, save_bundle
    from engine.model.classifier import Classifier, ClassifierShape
    from engine.model.encoder import FeatureHead, load_encoder, load_tokenizer
    from engine.model.features import FeatureModel
    from engine.model.words import Words
    from engine.planning.word_counts import HEAD_WORDS

    torch.manual_seed(0)
    encoder = load_encoder(encoder_folder, pooling, torch.float32)
    center = torch.randn(encoder.width) * 0.1 if centered else None
    below = FeatureModel(encoder, FeatureHead(encoder.width, intermediate, 0.0, center))
    if adapter:
        below.head.add_adapter(adapter)
        torch.nn.init.normal_(below.head.adapter.up.weight, std=0.3)
    width = below.head.width
    shape = ClassifierShape(labels, head, width, fan_in, group_size, "rowwise", weight_dtype)
    if clusters:
        shape = replace(shape, clusters=clusters, coarse=coarse, local=fan_in // (2 if coarse else 1))
        below.head.add_local(shape.local_columns)
        torch.nn.init.normal_(below.head.local.weight, std=0.3)
        torch.nn.init.normal_(below.head.local.bias)
    if words:
        pieces, tokenizer = encoder.model.config.vocab_size, load_tokenizer(encoder_folder)
        texts = [tokenizer.encode(text, add_special_tokens=False) for text in pairs_of]
        pairs = sorted({first * pieces + second for ids in texts for first, second in pairwise(ids)})
        vocabulary = pieces + len(pairs)
        idf = torch.rand(vocabulary) + 1
        idf[tokenizer.all_special_ids] = 0.0
        below.words = Words(idf, torch.tensor(pairs) if pairs else None)
        head_words = min(HEAD_WORDS * words, vocabulary // 2)
        shape = replace(shape, words=words, head_words=head_words, vocabulary=vocabulary, lead=lead)
    classifier = Classifier.new(shape, resolve_backend("torch", "cpu")[0], "cpu", 0)
    if clusters:
        classifier.read_local()
    for layer in classifier.layers:
        layer.bias.normal_(-4, 1)
        layer.weight.copy_(torch.randn(layer.weight.shape) * 0.1 * layer.scale)
        if layer.words and not layer.reads_all:
            chosen = torch.rand(len(layer.index), vocabulary).topk(layer.words, dim=1).indices.sort(dim=1).values
            classifier.read_words(layer, 0, chosen)
    path.parent.mkdir(parents=True, exist_ok=True)
    labels_file = path.parent / "labels.parquet"
    names = [f"label-{i}" for i in range(labels)]
    table = {"name": names, "text": [""] * labels, "train_frequency": [1] * labels}
    pq.write_table(pa.table(table), labels_file)
    save_bundle(
        path,
        BundleInfo(shape, loss, pooling, tokens, encoder.width, intermediate, "made here", 1, adapter),
        encoder,
        load_tokenizer(encoder_folder),
        below,
        classifier,
        LabelOrder.from_labels(np.random.default_rng(0).permutation(labels), head),
        labels_file,
        {"P@1": 0.5, "instances": 100},
    )
    return path
