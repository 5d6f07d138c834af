"""The model bundle: one self-contained folder with everything a prediction needs. Safetensors, nothing pickled.

model.json                shape of the classifier, loss, pooling, tokens, where it comes from
encoder/                  Hugging Face model and tokenizer
classifier.safetensors    head, tail, label_order int32 [L]; of what there is, lead (labels that read all words),
                          adapter, intermediate layer, local features, words.idf fp32 [V], words.pairs int64 [P]
labels.parquet            name, text, train_frequency; row l is label l
metrics.json              validation metrics of this model
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.data.label_order import LabelOrder
from engine.errors import DataError
from engine.files import sync
from engine.model.classifier import Classifier, ClassifierShape
from engine.model.encoder import FeatureHead, TextEncoder, load_encoder, load_tokenizer
from engine.model.features import FeatureModel
from engine.model.words import Words
from engine.tensorfile import save_tensors

if TYPE_CHECKING:
    from types import ModuleType

    from transformers import PreTrainedTokenizerBase

SCHEMA = 2


@dataclass(frozen=True)
class BundleInfo:
    """model.json. encoder_width and intermediate are feature widths, adapter is the hidden one of the adapter, 0 where
    there is none; loss decides how a logit is a probability."""

    shape: ClassifierShape
    loss: str
    pooling: str
    max_tokens: int
    encoder_width: int
    intermediate: int
    dataset: str
    step: int
    adapter: int = 0
    schema: int = SCHEMA


@dataclass
class Bundle:
    """A loaded bundle, ready to predict: features from `model`, top-k from `classifier`, names from `path`."""

    path: Path
    info: BundleInfo
    model: FeatureModel
    tokenizer: PreTrainedTokenizerBase
    classifier: Classifier
    order: LabelOrder


def save_bundle(
    path: Path,
    info: BundleInfo,
    encoder: TextEncoder,
    tokenizer: PreTrainedTokenizerBase,
    below: FeatureModel,
    classifier: Classifier,
    order: LabelOrder,
    labels_file: Path,
    metrics: dict,
) -> None:
    """Writes the bundle beside `path`, then puts it in the place of the one that is there.

    below: what turns the encoder's features into what the classifier reads. Raises OSError or SafetensorError (from
    the encoder) when the disk does not take it; the old bundle is then still there.
    """
    fresh, old = path.with_name(path.name + ".tmp"), path.with_name(path.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        state = {name: _on_its_own(tensor) for name, tensor in encoder.model.state_dict().items()}
        encoder.model.save_pretrained(fresh / "encoder", state_dict=state)
        tokenizer.save_pretrained(fresh / "encoder")
        tensors = {**classifier.tensors(with_state=False), "label_order": torch.from_numpy(order.label_at)}
        center = below.head.center
        for name, part in below.head.parts().items():
            tensors |= {f"{name}.{key}": tensor for key, tensor in part.state_dict().items()}
        if center is not None:
            tensors["center"] = center
        if below.words is not None:
            tensors["words.idf"] = below.words.idf
            if below.words.pairs is not None:
                tensors["words.pairs"] = below.words.pairs
        save_tensors(tensors, fresh / "classifier.safetensors")
        shutil.copyfile(labels_file, fresh / "labels.parquet")
        (fresh / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        (fresh / "model.json").write_text(json.dumps(asdict(info), indent=2) + "\n")
        for written in [*fresh.rglob("*"), fresh]:
            sync(written)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        os.replace(path, old)
    os.replace(fresh, path)
    shutil.rmtree(old, ignore_errors=True)


def _on_its_own(tensor: Tensor) -> Tensor:
    """The tensor on the host, copied if its memory holds others: the parameters of a trained encoder share one."""
    return tensor.to("cpu", copy=tensor.untyped_storage().nbytes() > tensor.nbytes)


def recover_bundle(path: Path) -> None:
    """Undoes a replacement that a crash interrupted between its two renames."""
    old = path.with_name(path.name + ".old")
    if old.is_dir() and not path.exists():
        os.replace(old, path)


def load_bundle(path: Path, device: torch.device | str, dtype: torch.dtype, backend: ModuleType) -> Bundle:
    """Opens a bundle for prediction, its encoder in `dtype`. Raises DataError naming the file that is wrong."""
    from safetensors import SafetensorError, safe_open

    info = read_info(path)
    try:
        with safe_open(path / "classifier.safetensors", "pt") as file:  # mapped, not read: no copy in host memory
            tensors = {name: file.get_tensor(name).to(device) for name in sorted(file.keys())}
        order = LabelOrder.from_labels(tensors.pop("label_order").cpu().numpy(), info.shape.head)
        head = FeatureHead(info.encoder_width, info.intermediate, 0.0, tensors.pop("center", None))
        if info.adapter:
            head.add_adapter(info.adapter)
        if info.shape.clusters:
            head.add_local(info.shape.local_columns)
        for name, part in head.parts().items():
            part.load_state_dict({key: tensors.pop(f"{name}.{key}") for key in part.state_dict()})
        words = None
        if info.shape.vocabulary:
            words = Words(tensors.pop("words.idf"), tensors.pop("words.pairs", None))
        classifier = Classifier.from_tensors(info.shape, tensors, backend)
    except torch.OutOfMemoryError:  # a RuntimeError, but the file is good
        raise
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise DataError(f"{path / 'classifier.safetensors'}: {error}; copy the model again") from error
    encoder = load_encoder(path / "encoder", info.pooling, dtype)
    model = FeatureModel(encoder, head, words).to(device).eval()
    return Bundle(path, info, model, load_tokenizer(path / "encoder"), classifier, order)


def read_info(path: Path) -> BundleInfo:
    """model.json of a bundle. Raises DataError when there is none or it is of another schema."""
    file = path / "model.json"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        if raw.get("schema") != SCHEMA:
            raise DataError(f"{file}: schema {raw.get('schema')}, this version reads {SCHEMA}; train the model again")
        return BundleInfo(**{**raw, "shape": ClassifierShape(**raw["shape"])})
    except FileNotFoundError as error:
        raise DataError(f"{path} is no model: it has no model.json; name a run or its model folder") from error
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{file} is damaged ({error}); copy the model again") from error
