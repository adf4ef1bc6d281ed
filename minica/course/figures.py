"""How a figure reaches the page: with alternative text, in twice the pixels within few bytes, and redrawn in place by sliders.

In a kernel, importing this module registers :func:`picture` for every figure that is shown, a reader's own included.
"""

from __future__ import annotations

import base64
import functools
import inspect
import io
import sys
from collections.abc import Callable
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
from IPython import get_ipython
from IPython.display import display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image

from .scan import VIEW

FINER = 2  # pixels of the file for one on the page, so that phones and dense screens have something to show
FAR_OFF = 4  # of 255: where a tenth of the pixels are further from their colour, smooth shades become steps
PHONE = 390  # the width of a page on one
JPEG_QUALITY = 60  # in twice the pixels this shows less than 80 does in half of them
NOT_LIVE = "Run this cell to move the sliders."

live: list[ipywidgets.interactive] = []  # the sliders of this kernel, in the order of their cells


def described(figure: Figure, text: str) -> Figure:
    """The figure with ``text`` for those who do not see it, which screen readers read in place of the picture."""
    figure.set_label(" ".join(text.split()))
    return figure


def alt_text(figure: Figure) -> str:
    """What :func:`described` said of the figure, or else its titles, axes and legends in their order."""
    if figure.get_label():
        return figure.get_label()
    said = [figure.get_suptitle()]
    for axis in figure.axes:
        legend = axis.get_legend()
        names = [text.get_text() for text in legend.get_texts()] if legend else []
        axes = " against ".join(filter(None, (axis.get_ylabel(), axis.get_xlabel())))
        said += [axis.get_title(), axes, ", ".join(names)]
    return " ".join("; ".join(filter(None, said)).split()) or "a figure without a title"


def picture(figure: Figure) -> tuple[dict[str, str], dict[str, dict]]:
    """A figure as Jupyter shows it: the data by MIME type, and the metadata (alternative text, width, height) by MIME type.

    Drawings become a PNG of 256 colours.  Where these do not do, or where it is smaller, a JPEG is taken: photographs are.
    That is no wider than a phone needs, or a notebook of photographs would be too large to open there.
    The picture is as large as the figure, or larger where text reaches over its edge.
    """
    flat = _drawn(figure)
    # An octree keeps rare colours, those of small marks, which the median cut gives up.
    few = flat.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    kind, data = "image/jpeg", _encoded(_narrow(flat), "jpeg", quality=JPEG_QUALITY, optimize=True)
    off = np.abs(np.asarray(few.convert("RGB"), dtype=int) - np.asarray(flat)).max(-1) > FAR_OFF
    if off.mean() < 0.1 and len(drawing := _encoded(few, "png", optimize=True)) < len(data):
        kind, data = "image/png", drawing
    width, height = (round(side / FINER) for side in flat.size)
    about = {"alt": alt_text(figure), "width": width, "height": height}
    return {kind: base64.b64encode(data).decode("ascii")}, {kind: about}


def _narrow(flat: Image.Image) -> Image.Image:
    """A photograph with two pixels for one of a phone's page, and no fewer than one for one of its own."""
    width = max(FINER * PHONE, flat.width // FINER)
    return (
        flat if flat.width <= width else flat.resize((width, round(flat.height * width / flat.width)), Image.Resampling.LANCZOS)
    )


def _encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    image.save(file := io.BytesIO(), format=form, **options)
    return file.getvalue()


def _drawn(figure: Figure) -> Image.Image:
    """The figure in :data:`FINER` pixels on white; drawn once where nothing reaches over its edge: sliders wait."""
    dpi, canvas = figure.dpi, FigureCanvasAgg(figure)  # a closed figure has lost its own
    try:
        figure.set_dpi(FINER * dpi)
        canvas.draw()
        box = Bbox.union([figure.bbox_inches, figure.get_tightbbox(canvas.get_renderer())])
        if np.allclose(box.extents, figure.bbox_inches.extents):
            image = Image.fromarray(np.asarray(canvas.buffer_rgba()))
        else:
            canvas.print_figure(file := io.BytesIO(), format="png", dpi=figure.dpi, bbox_inches=box)
            image = Image.open(file)
    finally:
        figure.set_dpi(dpi)
    flat = Image.new("RGB", image.size, "white")
    flat.paste(image, mask=image.getchannel("A"))
    return flat


def sliders(draw: Callable[..., Figure], **controls: Any) -> None:
    """Show the figure that ``draw`` returns, and sliders that redraw it in place.

    The picture is an ordinary output, so it is there in a saved notebook as well, where :data:`NOT_LIVE` takes the sliders'
    place: see :func:`minica.course.page.without_widgets`.

    Args:
        draw: called with a value of each control; it draws from what is in memory.  Its defaults are where the sliders start.
        controls: by parameter of ``draw`` a widget, or a list or a tuple as ``ipywidgets.interact`` takes them.  A list of
            numbers and a tuple of words are sliders that stop at each of them.
    """
    handle = None

    @functools.wraps(draw)
    def redraw(**values):
        figure = draw(**values)
        plt.close(figure)  # or the cell would show it once more
        if handle is not None:
            handle.update(figure)
        return figure

    starts = inspect.signature(draw).parameters
    stops = {name: _stops(control, starts[name].default) for name, control in controls.items()}
    widget = ipywidgets.interactive(redraw, **stops)
    for control in widget.kwargs_widgets:
        control.description = control.description.replace("_", " ")
        control.style.description_width = "initial"  # a label is never cut
        control.layout.width, control.layout.max_width = "420px", "98%"
        if control.has_trait("continuous_update"):
            control.continuous_update = False
    if widget.result is None:  # it failed, and the widget says how
        display(widget)
        return
    handle = display(widget.result, display_id=True)
    bundle = {VIEW: {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}, "text/plain": NOT_LIVE}
    display(bundle, raw=True)
    live.append(widget)


def _stops(control: Any, start: Any) -> Any:
    """A slider with the stops of a list of numbers or a tuple of words; of what else there is ``interact`` makes a widget."""
    if isinstance(control, list | tuple) and isinstance(control[0], str) == isinstance(control, tuple):
        return ipywidgets.SelectionSlider(options=control, value=start if start in control else control[0])
    return control


def _register() -> None:
    shell = get_ipython()
    if shell is None or "ipykernel" not in sys.modules:
        return
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    set_matplotlib_formats()  # none of its own
    shell.display_formatter.mimebundle_formatter.for_type(Figure, picture)


_register()
