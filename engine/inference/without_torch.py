"""python without_torch.py FOLDER TEXT...: labels of texts from an exported model, with numpy and no torch."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
from tokenizers import Tokenizer

K, ROWS = 5, 8192
TYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1"}
TYPES |= {"I64": "<i8", "I32": "<i4", "I16": "<i2", "U16": "<u2"}
code = np.arange(256)  # e4m3 numbers: sign, 4 bits of exponent, 3 of mantissa; stored times 32
exponent, mantissa = code >> 3 & 15, code & 7
E4M3 = np.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent - 10), mantissa * 2.0**-9) * np.where(code > 127, -1, 1)

folder = Path(sys.argv[1])
info = json.loads((folder / "model.json").read_text())
file = folder / "classifier.safetensors"
size = int(np.memmap(file, "<u8", "r", 0, 1)[0])
header = json.loads(np.memmap(file, "u1", "r", 8, size).tobytes())
tensors = {
    name: np.memmap(file, TYPES[entry["dtype"]], "r", 8 + size + entry["data_offsets"][0], tuple(entry["shape"]))
    for name, entry in header.items()
}
tokenizer = Tokenizer.from_file(str(folder / "encoder" / "tokenizer.json"))
tokenizer.no_padding()
tokenizer.enable_truncation(info["max_tokens"])
encoder = onnxruntime.InferenceSession(folder / "features.onnx", providers=["CPUExecutionProvider"])
names = pq.read_table(folder / "labels.parquet", columns=["name"])["name"]
idf, keys = tensors.get("words.idf", []), tensors.get("words.pairs", [])
pieces = len(idf) - len(keys)
pairs = {int(key): column for column, key in enumerate(keys, pieces)}


def values(part, first):
    stored = tensors[f"{part}.weight"][first : first + ROWS]
    if stored.dtype == np.uint16:  # bf16
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return (E4M3[stored] / 32 if stored.dtype == np.uint8 else stored).astype(np.float32)


for text in sys.argv[2:]:
    ids = np.array([tokenizer.encode(text).ids], dtype=np.int64)
    (x_D,) = encoder.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
    if len(idf):  # behind the features: (1 + log of the count) * idf, pieces and pairs each of length 1
        found = [pairs[key] for key in ids[0, :-1] * pieces + ids[0, 1:] if key in pairs]
        count = np.bincount([*ids[0], *found], minlength=len(idf))
        words = np.split(np.where(count > 0, 1 + np.log(np.maximum(count, 1)), 0) * idf, [pieces])
        x_D = np.concatenate([x_D, *(part / max(np.linalg.norm(part), 1e-6) for part in words)])
    logits = []  # of the labels in their order
    for part in [part for part in ("lead", "head", "tail") if f"{part}.weight" in tensors]:
        for first in range(0, len(tensors[f"{part}.weight"]), ROWS):
            w_RF = values(part, first)
            group = np.arange(first, first + len(w_RF)) // info["shape"]["group_size"]
            index = tensors.get(f"{part}.index")
            z_R = w_RF @ x_D if index is None else (w_RF * x_D[index[group]]).sum(1)
            logits.append(z_R + tensors[f"{part}.bias"][first : first + ROWS])
    z_L = np.concatenate(logits)
    best = np.argsort(-z_L, kind="stable")[:K]
    p = 1 / (1 + np.exp(-z_L[best])) if info["loss"] == "bce" else np.clip((z_L[best] + 1) / 2, 0, 1)
    found = [(names[int(tensors["label_order"][at])].as_py(), float(q)) for at, q in zip(best, p, strict=True)]
    print(json.dumps({"text": text, "labels": found}))
