"""``mmalign world build``."""

import json

from mmalign.worlds.config import WorldConfig

__all__ = ["WorldConfig", "run"]


def run(options: WorldConfig) -> None:
    """Build the world and print what is in it."""
    from mmalign.worlds.build import build_world

    folder = build_world(options)
    counts = read_json_object(folder / "world.json")["counts"]
    print(f"world in {folder}: " + ", ".join(f"{value:,} {key}" for key, value in counts.items()))
