"""Runs with a tiny model, as a training leaves them."""

from engine.runs import RunDirectory

LABELS = ["builtins.open", "io", "json.loads", "<b>bold</b>", "re", "os.path"]
# The order that the bundle's biases make, whatever the text: the classifier itself is random.
RANKING = ["io", "builtins.open", "<b>bold</b>", "os.path", "re", "json.loads"]


def save_bundle_of(encoder_folder, path):
    """A complete model with a tiny encoder."""
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

    encoder = load_encoder(encoder_folder, "mean", torch.float32)
    shape = ClassifierShape(labels=len(LABELS), head=2, width=encoder.width, fan_in=4, group_size=2)
    classifier = Classifier.new(shape, resolve_backend("torch", "cpu")[0], "cpu", 0)
    bias = torch.tensor([4.0 - 2 * RANKING.index(label) for label in LABELS])
    for layer, values in zip(classifier.layers, bias.split([2, len(LABELS) - 2]), strict=True):
        layer.weight.mul_(0.01)
        layer.bias.copy_(values)
    labels_file = path.parent / "labels.parquet"
    table = {"name": LABELS, "text": [""] * len(LABELS), "train_frequency": [1] * len(LABELS)}
    pq.write_table(pa.table(table), labels_file)
    save_bundle(
        path,
        BundleInfo(shape, "bce", "mean", 16, encoder.width, 0, "tiny", 1),
        encoder,
        load_tokenizer(encoder_folder),
        FeatureModel(encoder, FeatureHead(encoder.width, 0, 0.0)),
        classifier,
        LabelOrder.from_labels(np.arange(len(LABELS)), shape.head),
        labels_file,
        {},
    )


def make_run(root, id, state, step=0, total=0, message="", metrics=None):
    run = RunDirectory(root / id)
    run.path.mkdir(parents=True)
    run.status(state, step, total, message)
    run.write_json("plan.json", {"fan_in": 4, "width": 32, "group_size": 16, "head": 0, "labels": len(LABELS)})
    if metrics:
        run.write_json("result.json", {"metrics": metrics})
    return run
