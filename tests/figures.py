"""What tests of figures share: what is written in one, and none is left open."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def texts(figure):
    """All that can be read in a drawn figure."""
    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
