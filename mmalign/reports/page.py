"""A template to a self-contained HTML page, in which every text is escaped."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mmalign.files import write_whole


def render_page(out: Path, template: str, *, filters: Mapping[str, Callable[..., str]] | None = None, **values: Any) -> Path:
    """Fill a template of this room and write the page, whole or not at all.

    Args:
        out: HTML file; its folder is made.
        template: Name of the template.
        filters: Of the page's own; every page has ``format_count``.
        values: What it shows.

    Returns:
        ``out``.
    """
    environment = Environment(
        loader=PackageLoader("mmalign.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["format_count"] = "{:,}".format
    environment.filters |= filters or {}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, environment.get_template(template).render(**values))
    return out
