"""python without_torch.py FOLDER TEXT...: labels of texts from an exported model, with numpy and no torch."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
from tokenizers import Tokenizer

K, ROWS = 5, 8192
TYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "I32": "<i4", "I16": "<i2"}
code = np.arange(256)  # e4m3 numbers: sign, 4 bits of exponent, 3 of mantissa; stored times 32
exponent, mantissa = code >> 3 & 15, code & 7
E4M3 = np.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent - 10), mantissa * 2.0**-9) * np.where(code > 127, -1, 1)

folder = Path(sys.argv[1])
info = json.loads((folder / "model.json").read_text())
file = folder / "classifier.safetensors"
with file.open("rb") as stream:
    header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    start = stream.tell()
tensors, kinds = {}, {}
for name, entry in header.items():
    place = start + entry["data_offsets"][0]
    tensors[name] = np.memmap(file, TYPES[entry["dtype"]], "r", place, tuple(entry["shape"]))
    kinds[name] = entry["dtype"]
tokenizer = Tokenizer.from_file(str(folder / "encoder" / "tokenizer.json"))
tokenizer.no_padding()
tokenizer.enable_truncation(info["max_tokens"])
encoder = onnxruntime.InferenceSession(folder / "features.onnx", providers=["CPUExecutionProvider"])
names = pq.read_table(folder / "labels.parquet", columns=["name"])["name"]


def values(part, first):
    stored = tensors[f"{part}.weight"][first : first + ROWS]
    if kinds[f"{part}.weight"] == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return (E4M3[stored] / 32 if stored.dtype == np.uint8 else stored).astype(np.float32)


for text in sys.argv[2:]:
    ids = np.array([tokenizer.encode(text).ids], dtype=np.int64)
    (x_D,) = encoder.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
    logits = []  # of the dense head, then of the sparse tail
    for part in [part for part in ("head", "tail") if f"{part}.weight" in tensors]:
        for first in range(0, len(tensors[f"{part}.weight"]), ROWS):
            w_RF = values(part, first)
            if part == "tail":
                group = np.arange(first, first + len(w_RF)) // info["shape"]["group_size"]
                w_RF = w_RF * x_D[tensors["tail.index"][group]]
            z_R = w_RF.sum(1) if part == "tail" else w_RF @ x_D
            logits.append(z_R + tensors[f"{part}.bias"][first : first + ROWS])
    z_L = np.concatenate(logits)
    best = np.argsort(-z_L, kind="stable")[:K]
    p = 1 / (1 + np.exp(-z_L[best])) if info["loss"] == "bce" else np.clip((z_L[best] + 1) / 2, 0, 1)
    found = [(names[int(tensors["label_order"][at])].as_py(), float(q)) for at, q in zip(best, p, strict=True)]
    print(json.dumps({"text": text, "labels": found}))
