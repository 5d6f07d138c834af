"""How many words labels read beside their features, and how many pairs of pieces are words. Needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.planning.planner import Problem

WORDS = (256, 128, 64, 32, 0)  # that a label reads
MOST_WORDS = 1024  # that it reads where labels are few
HEAD_WORDS = 4  # times as many are read by a head label
# With a frozen encoder words have more to do: a head label reads more of them, and pairs of neighbours are words, too.
FROZEN_HEAD_WORDS, MOST_HEAD_WORDS = 16, 4096
PAIR_READERS = 1024  # read words with pairs: labels that read at least so many
PAIRS = 1 << 15  # with 30,522 pieces and up to 1,024 features ids of 16 bits
LEAD_LABELS = 64  # the most frequent ones, which read all words where the encoder is frozen
FULL_FAN_IN, FULL_WORDS = 64, 128  # a larger fan-in is not bought with fewer words


def words_read(problem: Problem, fan_in: int) -> tuple[int, ...]:
    """How many words a label may read, the preferred first. By itself a dense layer reads none, nor do labels that
    share nothing: what one of them reads would have to be gathered for it alone."""
    c, most = problem.config.classifier, problem.encoder.vocabulary // 2
    wanted = problem.config.words.fan_in
    if wanted != "auto":
        return (min(wanted, most),)
    if c.fan_in == "dense" or c.group_size == 1:
        return (0,)
    few = c.fan_in == "auto" and fan_in == problem.width and not problem.trained
    found = tuple(dict.fromkeys(min(words, most) for words in ((MOST_WORDS, *WORDS) if few else WORDS)))
    if fan_in <= FULL_FAN_IN or c.fan_in != "auto":
        return found
    return tuple(words for words in found if words >= min(FULL_WORDS, most))


def head_words_read(problem: Problem, words: int, is_dense: bool) -> int:
    """How many words a head label reads where others read `words`."""
    wanted = HEAD_WORDS * words
    if not problem.trained and not is_dense:
        wanted = max(words, min(FROZEN_HEAD_WORDS * words, MOST_HEAD_WORDS))
    return min(wanted, problem.encoder.vocabulary // 2)


def lead_labels(problem: Problem, words: int, head: int) -> int:
    """How many of the head labels read all words."""
    wanted = problem.config.words.lead_labels
    if not words:
        return 0
    return min(head, wanted if wanted != "auto" else 0 if problem.trained else LEAD_LABELS)


def pairs_counted(problem: Problem, words: int, lead: int) -> int:
    """How many pairs of pieces are words, where a label reads up to so many words, and `lead` labels all."""
    wanted = problem.config.words.pairs
    if words < PAIR_READERS and not lead:
        return 0
    return wanted if wanted != "auto" else 0 if problem.trained else PAIRS
