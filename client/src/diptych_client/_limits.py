"""How large an image and a text may be."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """The server's limits, and the limit of conversion here.

    All but the last are the server's, with the defaults of `diptych export`. A pixel limit of 0: the server
    refuses the format.

    max_jpeg_coefficients     of a progressive JPEG: a decoder holds all of them
    max_jpeg_scanned_samples  of a progressive JPEG, summed over its scans
    max_converted_pixels      of a file that is converted here because the server refuses it. Decoding takes
                              about 45 ms and up to 18 MB for each megapixel. 0: no file is converted.
    """

    max_image_bytes: int = 20 * 2**20
    max_jpeg_pixels: int = 64_000_000
    max_png_pixels: int = 12_000_000
    max_webp_pixels: int = 2**22
    max_gif_pixels: int = 2**22
    max_bmp_pixels: int = 2**22
    max_tiff_pixels: int = 0
    max_avif_pixels: int = 0
    max_heic_pixels: int = 0
    max_jpeg_coefficients: int = 2**25
    max_jpeg_scanned_samples: int = 100_000_000
    max_text_bytes: int = 64 * 2**10
    max_converted_pixels: int = 25_000_000

    def max_pixels(self, format: str) -> int:
        """The pixel limit of a format such as 'JPEG'."""
        limit: int = getattr(self, f"max_{format.lower()}_pixels")
        return limit
