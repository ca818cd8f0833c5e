"""What mmalign sample-images or sample-denoiser drew, as scored lists."""

from collections.abc import Iterator
from typing import Any

from datasets import Dataset

from data_tools.picture_scores import PictureScorer
from mmalign.data.images import load_image
from mmalign.data.rows import check_columns


class SampledPictures:
    """Each caption's pictures, which stay in their files until they are read."""

    def __init__(self, samples: Dataset, *, what: str) -> None:
        """Find the rows of each caption.

        Args:
            samples: Of sample-images, a row per picture, or of sample-denoiser, a row per caption with ``images``.
            what: What the samples are called in errors.

        Raises:
            ValueError: If columns are missing.
        """
        self.samples, self.listed = samples, "images" in samples.column_names
        if self.listed:
            self.captions = [[number] for number in range(len(samples))]
            return
        check_columns(samples.column_names, ("id", "caption", "image", "codes", "codes_of"), what=what)
        self.captions = _by_caption(samples)

    def read(self, number: int) -> dict[str, Any]:
        """A caption's list, without scores: a row that ``train listwise --pictures`` or ``train image-preference`` reads."""
        group = [self.samples[place] for place in self.captions[number]]
        first = group[0]
        if self.listed:
            return dict(first)
        drawn = {"images_responses": [row["image"] for row in group], "codes_responses": [row["codes"] for row in group]}
        return {"id": str(first["id"]), "caption": first["caption"], **drawn, "codes_of": first["codes_of"]}

    def score(self, number: int, scorer: PictureScorer) -> list[float]:
        """The scores of a caption's pictures; raises if the scorer can't score."""
        group = [self.samples[place] for place in self.captions[number]]
        images = group[0]["images"] if self.listed else [row["image"] for row in group]
        return scorer(group[0], [load_image(image) for image in images])


def read_lists(samples: Dataset, scorer: PictureScorer, *, what: str) -> Iterator[dict[str, Any]]:
    """Score each caption's pictures; arguments and errors as of ``SampledPictures``."""
    lists = SampledPictures(samples, what=what)
    for number in range(len(lists.captions)):
        yield {**lists.read(number), "scores": lists.score(number, scorer)}


def _by_caption(samples: Dataset) -> list[list[int]]:
    places: dict[tuple[str, str], list[int]] = {}
    for number, (name, caption) in enumerate(zip(samples["id"], samples["caption"], strict=True)):
        places.setdefault((str(name), caption), []).append(number)
    return list(places.values())
