"""``mmalign world build``."""

from mmalign.files import expected_form, read_json_object
from mmalign.options.world import WorldOptions
from mmalign.worlds.build import build_world


def run(options: WorldOptions) -> None:
    """Build the world and print what is in it."""
    folder = build_world(options)
    record = folder / "world.json"
    with expected_form(record):
        counts = read_json_object(record)["counts"]
        print(f"world in {folder}: " + ", ".join(f"{value:,} {key}" for key, value in counts.items()))
