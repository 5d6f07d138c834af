"""The model card: what a model is, what it was trained on, how good it is. Markdown for people, YAML for the hub.

Source of the fields: Hugging Face hub documentation, "Model cards". Names of places on this machine stay here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.inference.metrics import format_table
from engine.model.bundle import BundleInfo
from engine.model.classifier import ClassifierShape
from engine.words import counted

# Settings that are names or places of the one who trained.
PRIVATE = ("run.", "data.path", "hardware.")
SHOWN_SOURCES = 12  # a corpus may be made of hundreds of packages
MEASURES = {"P": "precision", "R": "recall", "nDCG": "ndcg", "PSP": "propensity_scored_precision"}


def model_card(
    name: str,
    info: BundleInfo,
    run: Mapping[str, Any],
    data: Mapping[str, Any] | None,
    metrics: Mapping[str, Any],
    size: int,
    licence: str,
    onnx: bool,
) -> str:
    """run: config.json and result.json of the run by file name, as far as they are known · data: dataset.json, if it is
    · metrics: of its test set, else of validation · size: bytes of the classifier · onnx: whether features.onnx is
    there."""
    config = run.get("config.json", {})
    result = run.get("result.json", {})
    settings, origins = config.get("config", {}), config.get("origins", {})
    encoder = settings.get("encoder.name", "")
    on_hub = bool(re.fullmatch(r"[\w.-]+/[\w.-]+", encoder)) and not Path(encoder).exists()
    shown = {
        key: Path(value).name if key == "encoder.name" and not on_hub else value
        for key, value in settings.items()
        if origins.get(key, "default") != "default" and not key.startswith(PRIVATE)
    }
    parts = [
        _front_matter(name, info, metrics, licence, encoder if on_hub else None),
        f"# {name}",
        _summary(info, size, result),
        *([_data(data)] if data else []),
        _metrics(metrics, result),
    ]
    if shown:
        rows = "\n".join(f"| `{key}` | `{value}` |" for key, value in shown.items())
        parts.append(f"## Settings\n\nWhat differs from the defaults:\n\n| key | value |\n|---|---|\n{rows}")
    if versions := config.get("versions"):
        parts.append("Trained with " + ", ".join(f"{package} {version}" for package, version in versions.items()) + ".")
    parts.append(_use(onnx))
    parts.append(
        "## Licence\n\nThe weights come from an encoder and from data that have licences of their own; both bind what "
        f"is made of them. This card says `{licence}`: whoever publishes the model has to make sure that it is right."
    )
    return "\n\n".join(parts) + "\n"


def _front_matter(name: str, info: BundleInfo, metrics: Mapping[str, Any], licence: str, base: str | None) -> str:
    """YAML. Strings are written as JSON, which YAML reads."""
    quoted = json.dumps
    lines = ["---", f"license: {quoted(licence)}", "library_name: fanin", "pipeline_tag: text-classification"]
    lines += ["tags:", "- extreme-multi-label-classification", "- sparse"]
    if base:
        lines += [f"base_model: {quoted(base)}"]
    values = {key: value for key, value in metrics.items() if re.fullmatch(r"(P|R|nDCG|PSP)@\d+", key)}
    if values:
        dataset = quoted(info.dataset, ensure_ascii=False)
        lines += ["model-index:", f"- name: {quoted(name, ensure_ascii=False)}", "  results:"]
        lines += ["  - task:", "      type: text-classification", "    dataset:"]
        lines += [f"      name: {dataset}", f"      type: {dataset}", "    metrics:"]
        for key, value in values.items():
            measure, k = key.split("@")
            lines += [
                f"    - type: {MEASURES[measure]}_at_{k}",
                f"      name: {quoted(key)}",
                f"      value: {value:.5f}",
            ]
    return "\n".join([*lines, "---"])


def _summary(info: BundleInfo, size: int, result: Mapping[str, Any]) -> str:
    shape = info.shape
    dense = shape.labels * shape.width * 4
    taking = "Adapter and last layer take" if info.adapter else "The last layer takes"
    lines = [
        f"Gives a text those of {counted(shape.labels, 'label')} that it probably has. Trained on `{info.dataset}`, "
        f"{counted(info.step, 'step')}, loss `{info.loss}`; a text is read up to {info.max_tokens} tokens.",
        "",
        f"{_adapter(info)}{_features(shape)}{_local(shape)}{_words(shape)}"
        f"{taking} {size / 2**20:,.1f} MiB, weights in `{shape.weight_dtype}`; a dense layer in fp32, without words, "
        f"would take {dense / 2**20:,.1f} MiB.",
    ]
    if "peak_memory_bytes" in result:
        lines[-1] += f" Training took {result['peak_memory_bytes'] / 2**20:,.0f} MiB at its peak."
    return "\n".join(lines)


def _adapter(info: BundleInfo) -> str:
    if not info.adapter:
        return ""
    return f"The encoder is as it was found; a residual layer {info.adapter:,} wide fits its features to the labels. "


def _features(shape: ClassifierShape) -> str:
    if shape.head == shape.labels:
        return f"All labels read all {shape.width} features. "
    return (
        f"The last layer is sparse: {shape.head:,} frequent labels read all {shape.width} features, the other "
        f"{shape.labels - shape.head:,} read {min(shape.fan_in, shape.width)} of them, {shape.group_size} labels "
        "the same ones. "
    )


def _local(shape: ClassifierShape) -> str:
    if not shape.clusters:
        return ""
    coarse = f" and each of {shape.coarse} larger ones" if shape.coarse else ""
    return (
        f"Each of {shape.clusters} clusters of them{coarse} has {shape.local} linear features of its own, which "
        "are among those that its labels read. "
    )


def _words(shape: ClassifierShape) -> str:
    if not shape.vocabulary:
        return ""
    if shape.lead == shape.labels:
        return f"Beside them they read all {shape.vocabulary:,} words. "
    read = [shape.head_words] if shape.lead < shape.head else []
    read += [shape.words] if shape.head < shape.labels else []
    lead = f", the {shape.lead:,} most frequent labels all of them" if shape.lead else ""
    return f"Beside them they read {' and '.join(f'{n:,}' for n in read)} of {shape.vocabulary:,} words{lead}. "


def _data(data: Mapping[str, Any]) -> str:
    """What the model was trained on and is measured by, in numbers, and where that comes from."""
    splits, details, sources = data["splits"], data.get("details", {}), data.get("sources", {})
    train = splits["train"]
    said = f"{counted(train['instances'], 'training text')} with {counted(train['positives'], 'label')} in all"
    said += f", {counted(splits['test']['instances'], 'test text')}." if "test" in splits else ", no test texts."
    if "test_fraction" in details:
        said += f" The test texts are {details['test_fraction']:.1%} of one set, held out with seed {details['seed']}."
    if problems := details.get("problems"):
        said += f" {counted(sum(problems.values()), 'row')} of the sources could not be read."
    rows = [f"| {_cell(source)} | {_cell(origin)} |" for source, origin in list(sources.items())[:SHOWN_SOURCES]]
    if more := len(sources) - len(rows):
        rows.append(f"| {more:,} more | |")
    table = "\n\n| source | digest or version |\n|---|---|\n" + "\n".join(rows) if rows else ""
    return f"## Data\n\n{said}{table}"


def _cell(text: Any) -> str:
    """A piece of a table's row, as it is: on one line, without a sign that ends the cell or the code."""
    return "`" + re.sub(r"[`|\s]+", " ", str(text)) + "`"


def _metrics(metrics: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    if not any(re.fullmatch(r"P@\d+", key) for key in metrics):
        return "## Metrics\n\nNone were kept with the model."
    split = "Test" if result.get("metrics") else "Validation"
    table = format_table({"this model": metrics, **result.get("baselines", {})})
    return f"## Metrics\n\n{split} set, {counted(metrics.get('instances', 0), 'text')}\n\n```\n{table}\n```"


def _use(onnx: bool) -> str:
    text = (
        "## Use\n\n```python\nfrom engine.inference.predictor import Predictor\n\n"
        'print(Predictor.load("this folder").predict(["a text"], k=5))\n```\n\n'
        "The files:\n\n"
        "- `model.json`: shape of the classifier, loss, pooling, tokens\n"
        "- `encoder/`: Hugging Face model and tokenizer\n"
        "- `classifier.safetensors`: `head.weight` [head labels, features] and `head.bias` of the frequent labels; "
        "`tail.weight` [other labels, columns], `tail.bias` and `tail.index` [groups, columns], what the labels of a "
        "group read, row l that of group l // group_size: features first, those of clusters (`local.weight`, of the "
        "others) behind the others, then words, whose ids begin behind all features; `head.index` likewise where it is "
        "there; `lead.weight` and `lead.bias`, where they are there, of the most frequent labels, which read all "
        "columns; features are those of the encoder less `center`, of length √D, with "
        "`adapter.up`(gelu(`adapter.down`)) of them added and again of that length, then `intermediate`, as far as "
        "there are any; what words weigh in a text `words.idf` [vocabulary] gives, pieces of the tokenizer first "
        "and behind them, where there are any, the pairs of neighbouring pieces in `words.pairs`; `label_order` "
        "[labels], the label at each position of lead, head and tail. An e4m3 weight is stored times 32\n"
        "- `labels.parquet`: name of label l in row l\n"
        "- `metrics.json`: on validation data\n"
    )
    if not onnx:
        return text
    example = Path(__file__).with_name("without_torch.py").read_text(encoding="utf-8")
    return (
        f"{text}- `features.onnx`: token ids to features, in fp32\n\n"
        f"Without torch (`pip install numpy onnxruntime pyarrow tokenizers`):\n\n```python\n{example}```"
    )
