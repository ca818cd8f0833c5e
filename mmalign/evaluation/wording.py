"""Prompts with places for texts."""

import re
from collections.abc import Mapping

from mmalign.errors import UserError


def fill_prompt(template: str, fields: Mapping[str, str]) -> str:
    """Fill a prompt: ``{name}`` is replaced by its field, and bare ``{}`` by the fields in their order.

    Texts are put in as they are, braces and all.

    Raises:
        ValueError: If the template holds no field.
    """
    if template.count("{}") == len(fields):
        texts = iter(fields.values())
        return re.sub(r"\{\}", lambda _: next(texts), template)
    if not any(f"{{{name}}}" in template for name in fields):
        raise UserError(
            f"the judge's prompt has no field; expected {', '.join('{' + name + '}' for name in fields)}, or {len(fields)} times {{}}"
        )
    # In one pass, so that braces in a text stay what they are.
    return re.sub(r"\{(\w+)\}", lambda found: fields.get(found[1], found[0]), template)
