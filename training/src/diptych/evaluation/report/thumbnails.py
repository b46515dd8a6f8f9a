"""Items' images, small enough to be part of a page."""

from __future__ import annotations

import base64
import io

from diptych.data.items import Item
from diptych.evaluation.plots import open_picture
from diptych_serving.preprocessing import PreprocessingSpec

THUMBNAIL_PX = 300  # twice what the page shows, for dense screens and print


def thumbnail(item: Item, spec: PreprocessingSpec) -> str | None:
    """A data URI; None if the item has no image. Raises InvalidInput if it cannot be decoded."""
    picture = open_picture(item.read_image(), spec)
    if picture is None:
        return None
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
