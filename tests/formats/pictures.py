"""The pictures that the examples name."""

import io

from tests.tiny_models import random_image


def _png(seed: int) -> bytes:
    buffer = io.BytesIO()
    random_image(seed).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = {"a.png": _png(0), "b.png": _png(1)}
