"""Colours and defaults of every chart. Importing it sets them in matplotlib."""

from __future__ import annotations

import matplotlib

INK, GREY, PALE, ACCENT, SECOND, THIRD = "#1f2933", "#7b8794", "#cbd2d9", "#2b6cb0", "#dd6b20", "#2f855a"

matplotlib.rcParams.update(
    {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": PALE,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "savefig.dpi": 130,
        "text.parse_math": False,  # a `$` in a category or a text is a dollar sign
        "svg.fonttype": "none",  # SVG text stays text, in the font of the page
        "svg.hashsalt": "diptych",  # the same figure gives the same file
    }
)
