"""Classes that are discovered from domains, as a teacher of a classifier."""

from dataclasses import dataclass, field
from pathlib import Path

from mmalign.options.classifier import LabelOptions


@dataclass(frozen=True, kw_only=True)
class DiscoverClassesOptions(LabelOptions):
    """Options of ``mmalign classifier discover-classes``."""

    model: Path = field(metadata={"positional": True})
    """folder of a classifier whose classes are the domains: classifier train --label-column COLUMN --form ce-only"""
    domain_column: str
    """column that says of which domain an image is"""
    out: Path
    """folder of the discovered classes; the same command writes the same again"""
    num_classes: int | None = None
    """classes to look for; as many as the data have if not given, never more than there are domains"""
    num_cells: int | None = None
    """cells that images are put into by what the classifier says of them; if not given 10 for each class, fewer of few images"""
    batch_size: int = 256
    """images per batch"""
    seed: int = 0
    """of the cells"""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        super().__post_init__()
        self.refuse_below(1, "batch_size")
        self.refuse_below(2, "num_classes")
