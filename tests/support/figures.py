"""What is written in a picture."""

from __future__ import annotations

from matplotlib.figure import Figure


def labels(figure: Figure) -> list[str]:
    """Names of its curves, as the legend has them."""
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
