"""The part of a model below the classifier, from token ids to features, as one ONNX file."""

from __future__ import annotations

import logging
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.errors import EnvironmentProblem
from engine.model.features import FeatureModel

NEEDED = ("onnx", "onnxscript")
ONE_FILE_BYTES = 3 * 2**29  # protobuf takes 2 GiB at the most; larger weights go into a file beside it
TOLERANCE = 1e-2  # of features around 1, fp32


class _Named(nn.Module):
    """A feature model whose inputs have names."""

    def __init__(self, model: FeatureModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model((input_ids, attention_mask))


def can_export() -> bool:
    """Whether the packages are there (extra `onnx`)."""
    return all(find_spec(package) for package in NEEDED)


def export_features(model: FeatureModel, path: Path) -> None:
    """Writes `model`, fp32 and on the CPU: input_ids, attention_mask int64 [batch, tokens] → features fp32 [batch, D].

    Where onnxruntime is installed, the file is asked and compared. Raises EnvironmentProblem when the encoder cannot
    be written in ONNX, or comes out different.
    """
    named = _Named(model).eval()
    ids = torch.tensor([[1, 2, 3, 4], [2, 3, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                named,
                (ids, mask),
                path,
                input_names=["input_ids", "attention_mask"],
                output_names=["features"],
                dynamic_shapes=({0: batch, 1: tokens}, {0: batch, 1: tokens}),
                dynamo=True,
                external_data=size > ONE_FILE_BYTES,
                verbose=False,
            )
    except Exception as error:  # the exporter raises errors of many kinds
        raise EnvironmentProblem(
            f"this encoder cannot be written in ONNX ({str(error).splitlines()[0]}); leave it out with --no-onnx"
        ) from error
    finally:
        logger.setLevel(level)
    if find_spec("onnxruntime"):
        _compare(named, path)


@torch.inference_mode()
def _compare(named: nn.Module, path: Path) -> None:
    """Asks the file about shapes that it was not made with."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for ids, mask in (
        (torch.tensor([[1, 2, 3]]), torch.ones(1, 3, dtype=torch.int64)),
        (torch.tensor([[1, 2, 3, 4, 5]] * 3), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])),
    ):
        (found,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        difference = (torch.from_numpy(found) - named(ids, mask)).abs().max().item()
        if not difference <= TOLERANCE:
            raise EnvironmentProblem(
                f"the encoder in ONNX gives other features (by {difference:.2g}); leave it out with --no-onnx"
            )
