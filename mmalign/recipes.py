"""Recipes by name: YAML files of options, each of one command, which its header names as ``mmalign COMMAND --config``.

In the checkout they stand in ``scripts/``, in an installed package in ``mmalign/recipe_files/``. Files whose header names no
command are read by a launcher (accelerate, SkyPilot), and can only be shown.
"""

import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from mmalign.errors import UserError
from mmalign.options.recipes import ListRecipesOptions, ShowRecipeOptions
from mmalign.tables import text_table

_COMMAND = re.compile(r"^#.*\bmmalign ((?:[a-z-]+ )+)--config\b", re.MULTILINE)


def find_folder() -> Path:
    """Return the folder of the recipes and of the demo's model configs."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "scripts"
    return checkout if (checkout / "da_dpo").is_dir() else package / "recipe_files"


def find_recipes() -> dict[str, Path]:
    """Map each recipe's name to its file."""
    folder = find_folder()
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """Return a recipe's file.

    Raises:
        ValueError: If there is none of this name.
    """
    known = find_recipes()
    if name not in known:
        near = get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"there is no recipe {name!r}; {hint}mmalign recipe list names them")
    return known[name]


def read_command(path: Path) -> list[str]:
    """Read from a recipe's header which command its options are of; nothing where it is none of mmalign."""
    found = _COMMAND.search(path.read_text(encoding="utf-8"))
    return found.group(1).split() if found else []


def expand(words: Sequence[str]) -> list[str]:
    """Turn a recipe's name and more words into the words of its command.

    Raises:
        ValueError: If there is no such recipe, it is of no command of mmalign, or the words name another file of options.
    """
    name, *rest = words
    path = find_recipe(name)
    command = read_command(path)
    if not command:
        raise UserError(f"{name} is a launcher's file: save it with mmalign recipe show {name} > FILE, and give that to the launcher")
    if any(word.split("=")[0] == "--config" for word in rest):
        raise UserError("a recipe is the file of --config; give single options, which win over it, or mmalign COMMAND --config FILE")
    return [*command, "--config", str(path), *rest]


def run_list(options: ListRecipesOptions) -> None:
    """Print the recipes with their commands."""
    commands = {name: read_command(path) for name, path in find_recipes().items()}
    rows = [(name, " ".join(["mmalign", *command]) if command else "a launcher's file") for name, command in commands.items()]
    print(text_table([("recipe", "command"), *rows], text=(0, 1)))


def run_show(options: ShowRecipeOptions) -> None:
    """Print a recipe's file as it is."""
    sys.stdout.write(find_recipe(options.name).read_text(encoding="utf-8"))
