"""What a test can say of a figure."""

from itertools import combinations

import numpy as np
from matplotlib.figure import SubFigure
from matplotlib.text import Text


def texts(figure):
    """All that can be read in it."""
    return [text.get_text() for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]


def boxes(axis):
    """Text of an axis and where it stands, in pixels."""
    renderer = axis.get_figure(root=True).canvas.get_renderer()
    return [(text.get_text(), Text.get_window_extent(text, renderer)) for text in axis.texts if text.get_text().strip()]


def check(figure):
    """Nothing is cut off, pictures aside every axis with ticks has a label or a title, no words of an axis overlap."""
    figure.draw_without_rendering()
    renderer, frame = figure.canvas.get_renderer(), figure.bbox
    for text in [text for part in (figure, *figure.findobj(SubFigure)) for text in part.texts]:
        box = text.get_window_extent(renderer)
        assert frame.x0 - 1 <= box.x0 <= box.x1 <= frame.x1 + 1, text.get_text()
        assert frame.y0 - 1 <= box.y0 <= box.y1 <= frame.y1 + 1, text.get_text()
    for axis in figure.findobj(lambda artist: hasattr(artist, "get_xticklabels")):
        if not axis.axison:
            box = [box for _, box in boxes(axis)]
        else:
            # leaves out ticks that lie outside of the axis, which are not drawn
            box = [axis.get_tightbbox(renderer)]
            assert axis.get_xlabel() or not any(tick.get_text() for tick in axis.get_xticklabels()), texts(axis)
        for one in box:
            assert frame.x0 - 1 <= one.x0 <= one.x1 <= frame.x1 + 1, texts(axis)
            assert frame.y0 - 1 <= one.y0 <= one.y1 <= frame.y1 + 1, texts(axis)
        for (text, box), (other, other_box) in combinations(boxes(axis), 2):
            assert not box.padded(-1).overlaps(other_box.padded(-1)), f"{text!r} over {other!r}"


def picture(axis):
    """The array that an axis shows."""
    return np.asarray(axis.images[0].get_array())
