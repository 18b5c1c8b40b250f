"""Figures of matplotlib as a part of a page: its colours, by day and by night, and nothing that names this machine."""

import io
import re
from typing import TYPE_CHECKING

from markupsafe import Markup, escape


if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What matplotlib draws in black on white has the colours of the page.
_COLOURS = {"#000000": "currentColor", "#ffffff": "var(--paper)"}


def inline_svg(figure: "Figure", name: str, alt: str) -> Markup:
    """A figure as an `<svg>` element.

    Args:
        figure ([`~matplotlib.figure.Figure`]):
            Not changed.
        name (`str`):
            Of the figure among those of its page: its parts are named after it.
        alt (`str`):
            What it shows, for those who do not see it.
    """
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    for colour, other in _COLOURS.items():
        text = text.replace(colour, other)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    head, rest = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)[0]
    # matplotlib has escaped the words in it
    return Markup(
        f'<svg {box} role="img" aria-label="{escape(alt)}" xmlns="http://www.w3.org/2000/svg" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink">{rest}'
    )
