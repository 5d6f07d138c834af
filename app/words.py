"""Words of the trade in plain language: as tooltips wherever they stand, and as a list."""

from __future__ import annotations

import re

from app.html import escape, facts

MEANINGS = {
    "fan-in": "how many of the encoder's features one label reads; more is more accurate and takes more memory",
    "sparse": "the share of the features that a label does not read",
    "dense": "reading every feature",
    "head labels": "the most frequent labels, which read every feature",
    "groups": "labels that read the same features, each with weights of its own",
    "encoder": "the language model that turns a text into features",
    "adapter": "a small trained layer between an encoder that stays as it is and the classifier",
    "classifier": "the last layer, with weights for every label; it is what outgrows a card",
    "batch": "the texts of one training step",
    "micro-batch": "the texts that go through the encoder at once; smaller takes less memory, the result is the same",
    "micro_batch": "the texts that go through the encoder at once; smaller takes less memory, the result is the same",
    "tokens": "pieces of words; an English word is about 1.3 of them",
    "activations": "what the encoder remembers of a step until it has learned from it",
    "checkpointing": "forgetting activations and computing them again: slower, with less memory",
    "checkpoint_every": "every so many layers, activations are forgotten and computed again: slower, with less memory",
    "optimizer_in_backward": "each part of the encoder is updated as soon as its gradient is there, to keep fewer",
    "CUDA graphs": "the encoder's work, recorded once, which the card then starts as a whole: faster, with more memory",
    "recorded passes": "what the encoder remembers of a step, kept in one place for CUDA graphs",
    "gradients": "which way every weight has to move",
    "optimizer": "what moves the weights, with a memory of earlier steps",
    "backward": "the half of a step that finds out which way the weights have to move",
    "master bits": "the second half of the encoder's weights, so that small steps are not lost in 16 bits",
    "index": "which features each group of labels reads",
    "scratch": "memory for what is computed on the way",
    "workspaces": "memory that matrix products compute in",
    "8-bit weights": "weights rounded to a byte",
    "peak": "the moment of a training that takes the most memory",
    "P@1": "share of the texts whose likeliest label is right",
    "P@3": "share of right labels among the three likeliest of each text",
    "P@5": "share of right labels among the five likeliest of each text",
    "PSP@1": "as P@1, but the rarer a label, the more it counts",
    "PSP@3": "as P@3, but the rarer a label, the more it counts",
    "PSP@5": "as P@5, but the rarer a label, the more it counts",
}
_ANY = re.compile("|".join(rf"\b{re.escape(word)}\b" for word in sorted(MEANINGS, key=len, reverse=True)))


def explained(text: str) -> str:
    """HTML of a plain text in which each such word has its tooltip where it comes first."""
    seen: set[str] = set()

    def tooltip(found: re.Match) -> str:
        word = found[0]
        if word in seen:
            return word
        seen.add(word)
        return f'<abbr title="{escape(MEANINGS[word])}">{word}</abbr>'

    return _ANY.sub(tooltip, escape(text))


def glossary() -> str:
    """All of them."""
    return facts((word, meaning) for word, meaning in MEANINGS.items() if "_" not in word)
