"""Counts in sentences."""


def counted(count: int, what: str) -> str:
    """`what`, in the singular, as many times: "1 text", "2,000 texts"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
