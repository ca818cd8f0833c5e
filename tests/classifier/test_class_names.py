"""Class names: matched by name, and tables of what they are called in words."""

import json
from pathlib import Path

import pytest

from mmalign.classifier.class_names import check_words, match_classes, match_words, read_class_names
from mmalign.errors import UserError

WORDNET = ("n01440764", "n01443537", "n01484850")
WORDS = ("tench", "goldfish", "great white shark")


def test_places_are_those_of_the_names() -> None:
    theirs = ["10", "2", "1"]
    order = match_classes(theirs, ("1", "2", "10"), what="the teacher")
    assert [theirs[place] for place in order] == ["1", "2", "10"]


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (["cat", "dog"], r"the data alone have frog \(1\)"),
        (["cat", "dog", "frog", "zebra"], r"the teacher alone has zebra \(1\)"),
        (["Cat", "dog", "frog"], r"the teacher alone has Cat \(1\), the data alone have cat \(1\)"),
        (["cat", "dog", "frog", "cat"], r"the teacher has a name twice"),
    ],
)
def test_other_names_are_refused_with_the_difference(theirs: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        match_classes(theirs, ("cat", "dog", "frog"), what="the teacher")


def test_accents_may_be_spelled_as_two_characters() -> None:
    assert match_classes(["cafe\u0301", "bar"], ("bar", "caf\u00e9"), what="the teacher").tolist() == [1, 0]


def test_a_file_of_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("n01440764 caf\u00e9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a.txt is not UTF-8 text: byte 13 is 0xe9; save it as UTF-8"):
        read_class_names(tmp_path / "a.txt", WORDNET)


def test_names_are_matched_by_what_they_mean() -> None:
    theirs = [WORDNET[2], WORDNET[0], WORDNET[1]]
    meanings = {WORDNET[0]: "tench, Tinca tinca", WORDNET[1]: "goldfish, Carassius auratus", WORDNET[2]: "great white shark, white shark"}
    for ours in (WORDNET, WORDS, ("Tinca_tinca", "Goldfish", "white shark"), ("tench, Tinca tinca", "goldfish", "Great_White_Shark")):
        assert match_words(theirs, ours, descriptions=meanings, what="the teacher").tolist() == [1, 2, 0]
    # Folders that are numbers, and a table of their names.
    assert match_words(theirs, ("0", "1", "2"), descriptions=meanings, words=WORDS, what="the teacher").tolist() == [1, 2, 0]
    # Names that are words themselves.
    for theirs in (["great white shark, white shark", "tench, Tinca tinca", "goldfish"], ["Great-White-Shark", "tench", "Goldfish"]):
        for ours in (WORDS, ("tench", "goldfish", "great_white_shark")):
            assert match_words(theirs, ours, descriptions={}, what="the teacher").tolist() == [1, 2, 0]
    crane = {"n02012849": "crane", "n03126707": "crane"}
    with pytest.raises(ValueError, match="expected the same names"):
        match_words(list(crane), ("crane", "other"), descriptions=crane, what="the teacher")


FILES = {
    "mapping.json": json.dumps(dict(zip(WORDNET, WORDS, strict=True))),
    "index.json": json.dumps({str(i): pair for i, pair in enumerate(zip(WORDNET, WORDS, strict=True))}),
    "list.json": json.dumps(WORDS),
    "names.csv": "wnid,name\n" + "".join(f'{key},"{name}"\n' for key, name in zip(WORDNET, WORDS, strict=True)),
    "classnames.txt": "".join(f"{key} {name}\n" for key, name in zip(WORDNET[::-1], WORDS[::-1], strict=True)),
    "longer.txt": "n00000001 something else\n" + "".join(f"{key}\t{name}\n" for key, name in zip(WORDNET, WORDS, strict=True)),
    "lines.txt": "\ufeff" + "\n".join(WORDS) + "\n\n",
    "colons.txt": "".join(f"{key}: {name}\n" for key, name in zip(WORDNET[::-1], WORDS[::-1], strict=True)),
    "equals.txt": "".join(f"{key} = {name}\n" for key, name in zip(WORDNET[::-1], WORDS[::-1], strict=True)),
    "bullets.md": "".join(f"- {name}\n" for name in WORDS),
    "dots.txt": "".join(f"{i}. {name}\n" for i, name in enumerate(WORDS)),
    # Numbered in the classes' order, from 0 or 1, in any order of the lines.
    "numbered.txt": "1 goldfish\n0 tench\n2 great white shark\n",
    "from_one.txt": "1\ttench\n2\tgoldfish\n3\tgreat white shark\n",
    "python.txt": "{0: 'tench',\n 1: 'goldfish',\n 2: \"great white shark\"}\n",
    "numbered.json": json.dumps({str(i): name for i, name in enumerate(WORDS)}),
    "numbered.csv": "index,name\n" + "".join(f"{i},{name}\n" for i, name in enumerate(WORDS)),
}


@pytest.mark.parametrize("name", list(FILES))
def test_tables_of_names_in_every_form(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    assert read_class_names(tmp_path / name, WORDNET) == WORDS


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", json.dumps({WORDNET[0]: "tench"}), r"has no name for n01443537, n01484850 \(2\); it names n01440764 \(1\)"),
        ("a.json", json.dumps(WORDS[:2]), "has 2 names and the data 3 classes; expected one for each"),
        ("a.json", json.dumps({"tench": 0}), "expected a mapping of classes to names, or a list of names"),
        ("a.json", "{", "is damaged or no JSON"),
        ("a.csv", "a,b,c\n", r"has the row \['a', 'b', 'c'\]; expected two columns: class and name"),
        ("a.txt", f"{WORDNET[0]} tench\n", r"has no name for n01443537, n01484850 \(2\)"),
        ("a.txt", "tench\n", "has 1 names and the data 3 classes"),
        ("a.txt", "0 tench\n1 goldfish\n", "has 2 names and the data 3 classes"),
        ("a.json", json.dumps({"0": "tench", "2": "goldfish"}), "has no name for n01440764"),
        ("a.txt", "".join(f"{name} {key}\n" for key, name in zip(WORDNET, WORDS, strict=True)), "has the name 'tench n01440764'; write"),
        ("a.jsonl", "\n".join(json.dumps({"name": name}) for name in WORDS), 'has the name \'{"name": "tench"}\'; write the class before'),
        ("a.json", json.dumps({**dict.fromkeys(WORDNET, "x"), WORDNET[1]: ""}), r"has no name for n01443537 \(1\)"),
        ("a.csv", f"{WORDNET[0]},tench\n{WORDNET[0]},goldfish\n", "calls n01440764 both 'tench' and 'goldfish'; expected one name"),
        ("a.txt", f"{WORDNET[0]} tench\n{WORDNET[0]} goldfish\n", "calls n01440764 both 'tench' and 'goldfish'; expected one name"),
        ("a.txt", "\n".join(WORDNET[::-1]), "has the classes in the order n01484850, .*write the class before each name"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_class_names(tmp_path / name, WORDNET)
    with pytest.raises(ValueError, match="not found"):
        read_class_names(tmp_path / "nowhere.txt", WORDNET)


def test_a_list_of_names_is_refused_for_folders_called_by_numbers(tmp_path: Path) -> None:
    """Folders 1 to 12 come as 1, 10, 11, 12, 2: nobody lists names so."""
    folders = sorted(str(number) for number in range(1, 13))
    (tmp_path / "list.txt").write_text("\n".join(f"name {number}" for number in range(1, 13)))
    with pytest.raises(UserError, match=r"called by numbers, in the order 1, 10, 11, 12, .*; write the class before each name"):
        read_class_names(tmp_path / "list.txt", folders)
    (tmp_path / "mapping.txt").write_text("\n".join(f"{number} name {number}" for number in range(1, 13)))
    assert read_class_names(tmp_path / "mapping.txt", folders) == tuple(f"name {number}" for number in folders)
    assert read_class_names(tmp_path / "list.txt", [f"{number:02}" for number in range(1, 13)])[1] == "name 2"


@pytest.mark.parametrize("between", ["\t", " ", ": ", " = "])
def test_classes_that_hold_spaces_are_not_taken_for_names_in_order(tmp_path: Path, between: str) -> None:
    (tmp_path / "a.txt").write_text(f"traffic light{between}Ampel\nstop{between}Halt\nstop sign{between}Stoppschild\n")
    assert read_class_names(tmp_path / "a.txt", ("stop", "stop sign", "traffic light")) == ("Halt", "Stoppschild", "Ampel")


def test_names_that_tell_a_text_tower_nothing() -> None:
    with pytest.raises(ValueError, match=r"classes are WordNet ids \(n01440764, n01443537, n01484850 \(3\)\), .* with --class-names"):
        check_words(WORDNET)
    assert check_words(WORDS) == []
    assert "--class-names gives them names" in check_words(("0", "1"))[0]
    assert check_words(("crane", "crane", "dog")) == ["several classes are called crane (1): a text tower can't tell them apart"]
