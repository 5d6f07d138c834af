"""Plan."""

from app.shared import Shared


def build(shared: Shared) -> None:
    """Lays the page out inside the current Blocks."""
