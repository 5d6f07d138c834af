"""Everything before the first step: dataset, tokens, encoder, cached features, plan, label order, classifier."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from engine.config import RunConfig
from engine.data.batches import split_validation
from engine.data.builtin import open_named
from engine.data.joined import JoinedRows, JoinedSets, JoinedTokens, MergedSets
from engine.data.label_order import LabelOrder, by_frequency
from engine.data.label_sets import LabelSets
from engine.data.label_texts import LabelTexts, are_trained_on
from engine.data.store import Dataset, Split
from engine.data.tokens import token_cache
from engine.errors import DataError
from engine.kernels.dispatch import resolve_backend
from engine.model.auxiliary import AuxiliaryObjective
from engine.model.classifier import Classifier, ClassifierShape
from engine.model.encoder import (
    FeatureHead,
    TextEncoder,
    check_length,
    checkpoint_activations,
    compile_encoder,
    load_encoder,
    load_tokenizer,
)
from engine.model.features import (
    FeatureInputs,
    FeatureModel,
    Inputs,
    TokenInputs,
    by_length,
    cached_features,
    mean_feature,
)
from engine.model.grouping import balanced_order, label_vectors
from engine.model.local_features import MeanTexts, local_directions
from engine.model.local_layout import LocalLayout
from engine.model.meta_labels import first_weight
from engine.model.sources import digest, find_encoder
from engine.model.word_choice import WordStatistics
from engine.model.words import Words
from engine.peak_memory import bound_heap
from engine.planning.encoders import shape_of
from engine.planning.hardware import Hardware
from engine.planning.memory import GROUPING_TOKENS, ORDER_SHARE
from engine.planning.planner import Plan, Problem, make_plan
from engine.planning.report import plan_line
from engine.planning.word_counts import PAIR_READERS
from engine.training.optimizers import FlatAdamW, make_optimizer
from engine.training.randomness import ADAPTER, AUXILIARY, LAYER, ORDER, WEIGHTS, seed_of
from engine.training.reporter import Reporter
from engine.training.sample import covering_sample
from engine.words import counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Autocast = Callable[[], AbstractContextManager]
WORD_TOKENS = 400_000 * 96  # of the texts from which words come: their statistics are held in memory
VECTOR_TEXTS = 1 << 20  # that the encoder reads for label vectors and local features
TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass
class Material:
    """What training reads. Rows are those of the train split and, behind them, of the label texts that are trained on
    as well. labels, train_inputs, tokens, lengths: of these rows · train_rows, validation_rows: int64, those with
    labels; validation is of the train split alone."""

    dataset: Dataset
    encoder: TextEncoder
    encoder_digest: str
    tokenizer: PreTrainedTokenizerBase
    model: FeatureModel
    labels: LabelSets | JoinedSets
    train_inputs: TokenInputs | FeatureInputs
    tokens: TokenInputs
    lengths: np.ndarray
    train_rows: np.ndarray
    validation_rows: np.ndarray
    frozen: bool

    @cached_property
    def label_frequency(self) -> np.ndarray:
        """int64 [L], on train."""
        return self.dataset.label_frequency()

    @cached_property
    def word_rows(self) -> np.ndarray:
        """Training rows from which words come: int64, ascending."""
        most = WORD_TOKENS / max(1.0, self.lengths[self.train_rows].mean())
        if most >= VECTOR_TEXTS:
            return self.vector_rows
        return covering_sample(self.labels, self.train_rows, self.dataset.n_labels, int(most))

    @cached_property
    def vector_rows(self) -> np.ndarray:
        """Training rows from which label vectors and local features come: int64, ascending."""
        return covering_sample(self.labels, self.train_rows, self.dataset.n_labels, VECTOR_TEXTS)

    @property
    def batching_lengths(self) -> np.ndarray | None:
        """Token counts of `train_rows` where batches are padded, None where features are cached."""
        return None if self.frozen else self.lengths[self.train_rows]


def open_dataset(config: RunConfig, reporter: Reporter) -> Dataset:
    """The dataset that the configuration names, verified; a built-in corpus is made if it is not there."""
    with reporter.stage(f"opening {config.data.path}", "files") as update:
        return open_named(config.data.path, update)


def gather(config: RunConfig, hardware: Hardware, dataset: Dataset, reporter: Reporter) -> Material:
    """Tokens, encoder and, with a frozen encoder, its features. Raises DataError if nothing can be trained on."""
    seed = config.run.seed
    directory = find_encoder(config.encoder.name)
    tokenizer = load_tokenizer(directory)
    frozen = config.encoder.trainable == "none"
    encoder = load_encoder(directory, config.encoder.pooling, TORCH[hardware.compute] if frozen else torch.float32)
    check_length(encoder, config.data.max_tokens)
    encoder_digest = digest(directory)
    augmented = are_trained_on(dataset, config.data.augment_with_labels)
    label_texts = LabelTexts.of(dataset) if augmented else None
    labelled = np.flatnonzero(dataset.train.labels.sizes())
    skipped = len(dataset.train) - len(labelled)
    if not len(labelled):
        raise DataError(f"{dataset.path}: no training text has a label; there is nothing to learn")
    reporter.say(
        f"data      {dataset.name}: {counted(len(labelled), 'training text')}, "
        f"{counted(len(dataset.test or ()), 'test text')}, {counted(dataset.n_labels, 'label')}"
        + (f"; {counted(skipped, 'text')} without labels {'is' if skipped == 1 else 'are'} skipped" if skipped else "")
        + (f"; the texts of {counted(len(label_texts), 'label')} are trained on, too" if label_texts else "")
    )
    kind = f"frozen, {hardware.compute}" if frozen else "trained"
    reporter.say(f"encoder   {config.encoder.name}: {kind}, {encoder.width} features, from {directory}")
    if not frozen and hardware.device == "cpu":
        reporter.say("warning   training the encoder on a CPU is slow; --set encoder.trainable=none is the CPU's way")
    train, validation = split_validation(len(labelled), config.data.validation_fraction, seed)
    train_rows, labels = labelled[train], dataset.train.labels
    parts: list[Split | LabelTexts] = [dataset.train]
    if label_texts:
        parts.append(label_texts)
        own, alone = dataset.train.filter, np.ones(len(label_texts), dtype=bool)
        if own is not None:  # once with and once without its own label, a text would contradict itself
            labels = MergedSets(labels, own)
            alone = ~np.isin(label_texts.ids, own.select(train_rows).ids)
        labels = JoinedSets(labels, label_texts.labels)
        train_rows = np.concatenate([train_rows, len(dataset.train) + np.flatnonzero(alone)])

    read = [tokens_of(part, tokenizer, config, dataset.cache, reporter) for part in parts]
    tokens = TokenInputs(JoinedTokens(*(each.tokens for each in read)), read[0].pad_id) if label_texts else read[0]
    inputs: TokenInputs | FeatureInputs = tokens
    lengths = tokens.tokens.lengths()
    center = None
    if frozen:
        encoder.requires_grad_(False)
        files = [feature_file(dataset, part, config, encoder_digest, hardware.compute) for part in parts]
        features = [
            features_of(encoder, each, file, hardware.device, reporter) for each, file in zip(read, files, strict=True)
        ]
        center = mean_feature(features[0], labelled[train])  # of texts such as will be asked about
        inputs = FeatureInputs(JoinedRows(*features) if label_texts else features[0])
    torch.manual_seed(seed_of(seed, LAYER))
    head = FeatureHead(encoder.width, config.intermediate.width, config.encoder.dropout, center)
    model = FeatureModel(None if frozen else encoder, head)
    return Material(
        dataset, encoder, encoder_digest, tokenizer, model, labels, inputs, tokens, lengths, train_rows,
        labelled[validation], frozen,
    )  # fmt: skip


def tokens_of(
    split: Split | LabelTexts, tokenizer: PreTrainedTokenizerBase, config: RunConfig, cache: Path, reporter: Reporter
) -> TokenInputs:
    """The split's token cache, made if it is not there."""
    with reporter.stage(f"tokenizing {split.name}", "texts") as update:
        tokens = token_cache(split, tokenizer, config.data.max_tokens, cache, progress=update)
    return TokenInputs(tokens, tokenizer.pad_token_id or 0)


def features_of(encoder: TextEncoder, inputs: TokenInputs, file: Path, device: str, reporter: Reporter) -> np.ndarray:
    """The frozen encoder's features of a split, fp16 [N, D], made if they are not there."""
    with bound_heap(), reporter.stage("computing features", "texts") as update:
        features = cached_features(encoder, inputs, file, device, update)
    encoder.to("cpu")
    return features


def feature_file(
    dataset: Dataset, split: Split | LabelTexts, config: RunConfig, encoder_digest: str, compute: str
) -> Path:
    """Where the features of a split lie: named by all that they depend on."""
    parts = (split.digest, encoder_digest, config.encoder.pooling, str(config.data.max_tokens), compute)
    name = hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]
    return dataset.cache / f"features-{split.name}-{name}.npy"


def plan_run(config: RunConfig, hardware: Hardware, material: Material, reporter: Reporter) -> Plan:
    """The plan for this data on this machine, said in a line."""
    encoder = shape_of(material.encoder.model.config.to_dict())
    tokens = int(material.lengths.max(initial=1))
    plan = make_plan(Problem(config, hardware, material.dataset.n_labels, encoder, tokens))
    reporter.say(f"plan      {plan_line(plan)}")
    return plan


def new_classifier(
    config: RunConfig,
    plan: Plan,
    material: Material,
    words: WordStatistics | None,
    device: torch.device,
    autocast: Autocast,
    reporter: Reporter,
) -> tuple[Classifier, LabelOrder]:
    """A classifier with random weights, and the order of its labels. words: where labels read any."""
    backend, line = resolve_backend(config.classifier.backend, device)
    reporter.say(f"backend   {line}, on {device}")
    label_at = by_frequency(material.label_frequency, plan.head)
    means = MeanTexts(label_at[plan.head :], plan.width) if plan.clusters else None
    order = _label_order(config, plan, material, label_at, means, device, autocast, reporter)
    if means is not None:
        _begin_local(material.model.head, means, classifier_shape(config, plan).layout, order, reporter)
    del means
    classifier = Classifier.new(classifier_shape(config, plan), backend, device, seed_of(config.run.seed, WEIGHTS))
    if words is not None:
        _choose_words(classifier, order, material, words, reporter)
    if plan.clusters:
        classifier.read_local()
    return classifier, order


def classifier_shape(config: RunConfig, plan: Plan) -> ClassifierShape:
    return ClassifierShape(
        plan.labels, plan.head, plan.width, plan.fan_in, plan.group_size, config.classifier.optimizer,
        plan.weight_dtype, plan.words, plan.head_words, plan.vocabulary, plan.clusters, plan.coarse, plan.local,
        plan.lead,
    )  # fmt: skip


def prepare_words(
    plan: Plan, material: Material, reporter: Reporter, saved: dict[str, Tensor] | None = None
) -> WordStatistics | None:
    """From here on the model reads words, if the plan says so; returns their statistics, None for those in `saved`,
    which a run has begun with."""
    if not plan.vocabulary:
        return None
    pieces = plan.vocabulary - plan.pairs
    among = f"{pieces:,} pieces" + (f" and {plan.pairs:,} pairs of them" if plan.pairs else "")
    beside = f"of {among} beside its features"
    most = f", a head label {plan.head_words:,}" if plan.lead < plan.head < plan.labels else ""
    lead = f", the {plan.lead:,} most frequent all" if plan.lead else ""
    reporter.say(f"words     a label reads {plan.usual_words:,} {beside}{most}{lead}")
    words = None
    if saved is None:
        special = [*material.tokenizer.all_special_ids, material.tokens.pad_id]
        words = WordStatistics(material.tokens.tokens, material.word_rows, pieces, special, plan.pairs)
        saved = {"idf": torch.from_numpy(words.idf), "pairs": torch.from_numpy(words.pairs)}
    material.model.words = Words(saved["idf"], saved["pairs"] if plan.pairs else None)
    if isinstance(material.train_inputs, FeatureInputs):
        material.train_inputs = FeatureInputs(material.train_inputs.features, material.tokens)
    return words


def _choose_words(
    classifier: Classifier, order: LabelOrder, material: Material, words: WordStatistics, reporter: Reporter
) -> None:
    labels = material.labels.select(material.word_rows)
    positions = order.position_of[labels.ids]
    with reporter.stage("choosing words", "groups") as update:
        for layer in classifier.layers:
            if layer.reads_all:
                continue
            done, groups = 0, len(layer.index)
            span = (layer.start, layer.labels, layer.group_size, layer.words)
            reads = (layer.index.device, layer.words >= PAIR_READERS)
            for first, words_KW in words.choose(labels.offsets, positions, *span, *reads):
                classifier.read_words(layer, first, words_KW)
                done += len(words_KW)
                update(done, groups)


def new_auxiliary(config: RunConfig, plan: Plan, material: Material, main: Classifier) -> AuxiliaryObjective | None:
    """The auxiliary objective, or None where its weight is 0."""
    weight = first_weight(config.auxiliary, plan.sparsity, config.trains_features)
    if weight == 0.0:
        return None
    return AuxiliaryObjective(config.auxiliary, weight, main, seed_of(config.run.seed, AUXILIARY))


def prepare_encoder(config: RunConfig, plan: Plan, material: Material, device: torch.device) -> FlatAdamW | None:
    """Moves what trains below the classifier to the device, with its optimizer and as the plan says."""
    if plan.adapter:
        torch.manual_seed(seed_of(config.run.seed, ADAPTER))
        material.model.head.add_adapter(plan.adapter)
    if plan.clusters:
        material.model.head.add_local(classifier_shape(config, plan).local_columns)
    trained = config.encoder.trainable == "all"
    if trained and config.encoder.compile:
        compile_encoder(material.encoder)
    if trained and plan.checkpoint_every:
        checkpoint_activations(material.encoder, plan.checkpoint_every)
    dtype = torch.bfloat16 if trained and plan.compute == "bf16" else torch.float32
    scales = trained and plan.compute == "fp16"
    return make_optimizer(material.model, config, device, dtype, plan.optimizer_in_backward, scales)


def _label_order(
    config: RunConfig,
    plan: Plan,
    material: Material,
    label_at: np.ndarray,
    means: MeanTexts | None,
    device: torch.device,
    autocast: Autocast,
    reporter: Reporter,
) -> LabelOrder:
    """Head labels, then groups of similar ones, formed in the memory that the classifier takes. label_at: int32 [L],
    head labels first; ordered in place · means: sees the texts, too, so that the encoder reads them once."""
    has_meta_labels = first_weight(config.auxiliary, plan.sparsity, config.trains_features) > 0
    if (plan.is_dense or plan.group_size == 1) and not has_meta_labels and means is None:
        return LabelOrder.from_labels(label_at, plan.head)
    seed = seed_of(config.run.seed, ORDER)
    features = _encoded(material, means, device, autocast, reporter)
    memory = int(ORDER_SHARE * plan.classifier_bytes)
    vectors = label_vectors(features, plan.labels, material.encoder.width, seed, memory)
    for labels in (label_at[plan.lead : plan.head], label_at[plan.head :]):
        if len(labels):
            labels[:] = balanced_order(vectors, plan.group_size, seed, torch.from_numpy(labels)).cpu().numpy()
    return LabelOrder.from_labels(label_at, plan.head)


def _begin_local(
    head: FeatureHead, means: MeanTexts, layout: LocalLayout, order: LabelOrder, reporter: Reporter
) -> None:
    """Gives the local features their first directions."""
    place_S = order.position_of[means.label_S].astype(np.int64) - order.head
    with reporter.stage("finding local features", "clusters") as update:
        weight, bias = local_directions(means, layout, place_S, update)
    with torch.no_grad():  # rounded, where the layer is bf16: the optimizer has no lower bits yet
        head.local.weight.copy_(weight)
        head.local.bias.copy_(bias)


@torch.no_grad()
def _encoded(
    material: Material, means: MeanTexts | None, device: torch.device, autocast: Autocast, reporter: Reporter
) -> Iterator[tuple[Tensor, np.ndarray, np.ndarray]]:
    """(features of the encoder, label offsets, label ids) of training rows, in batches; `means` sees each of them."""
    material.model.to(device).eval()
    rows, done = material.vector_rows, 0
    with reporter.stage("grouping labels", "texts") as update:
        for batch in by_length(material.lengths[rows], GROUPING_TOKENS):
            chosen = np.sort(rows[batch])
            inputs: Inputs = tuple(part.to(device) for part in material.train_inputs(chosen))
            labels = material.labels.select(chosen)
            with autocast():  # not around the yield: what the features are used for computes in fp32
                x_BD = material.model.encode(inputs)
            x_BD = x_BD.float()
            if means is not None:
                means.add(material.model.head.shared(x_BD), labels.offsets, labels.ids)
            yield x_BD, labels.offsets, labels.ids
            done += len(batch)
            update(done, len(rows))
