"""Similar photographs: the most similar one of which a caption is false, and answers that are true of their own photograph alone."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmalign.data.rows import read_pair
from mmalign.errors import UserError
from scripts.real.photos import Photo, photo_row
from scripts.real.similar import Matcher, main, named_objects, similar_rows, write_similar

NAMES = ("dog", "cat", "car", "bus", "cup", "fork", "bed", "kite")
WORDS = {name: name for name in NAMES} | {"puppy": "dog"}


def photo(identifier: str, objects: str, *captions: str, instances: str | None = None) -> Photo:
    true = None if instances is None else frozenset(instances.split())
    return Photo(identifier, f"{identifier}.jpg", "train", captions, frozenset(objects.split()), true)


def random_photos(number: int, seed: int) -> list[Photo]:
    rng = np.random.default_rng(seed)
    photos = []
    for i in range(number):
        objects = [NAMES[k] for k in rng.choice(len(NAMES), size=int(rng.integers(1, 5)), replace=False)]
        # Each caption names some of the objects.
        captions = [f"A {' and a '.join(objects[: int(rng.integers(1, len(objects) + 1))])} here." for _ in range(2)]
        photos.append(photo(str(i), " ".join(objects), *captions, instances=" ".join(objects)))
    return photos


def write_data(folder: Path, photos: list[Photo], part: str = "pairs") -> Path:
    (folder / "pair_photos").mkdir(parents=True)
    (folder / "pair_photos" / "synonyms.txt").write_text("dog, puppy\n" + "\n".join(NAMES[1:]) + "\n")
    (folder / "data.json").write_text(json.dumps({"classes": list(NAMES)}))
    (folder / "photos.jsonl").write_text("".join(json.dumps({**photo_row(one), "part": part}) + "\n" for one in photos))
    return folder


def text(messages: list[dict[str, str]]) -> str:
    return messages[0]["content"]


def test_the_most_similar_by_hand() -> None:
    photos = [
        photo("own", "dog cat cup", "A puppy on a bed with a cup."),
        # 2 of 3 in common, but it has all that the caption names.
        photo("superset", "dog cup", "A dog and a cup."),
        # 2 of 3, and its caption names nothing that the own one lacks.
        photo("subset", "cat cup", "A cat and a cup."),
        # 2 of 4 in common: what is taken.
        photo("taken", "cat cup fork", "A cup.", "A fork beside a cat."),
        # 1 of 4.
        photo("further", "cup bus", "A bus."),
    ]
    match = Matcher(photos, WORDS, seed=0).match(0, least=0.25)
    assert match is not None
    assert (match.other.id, match.similarity) == ("taken", 0.5)
    assert match.captions == ("A puppy on a bed with a cup.", "A fork beside a cat.")
    # The bed that its caption names is none of its objects.
    assert match.lacking == ({"dog"}, {"fork"})
    assert Matcher(photos, WORDS, seed=0).match(0, least=0.6) is None


def test_rows_hold_against_a_search_of_all_pairs() -> None:
    photos = random_photos(60, seed=3)
    by_image = {one.image: one for one in photos}
    rows = list(similar_rows(photos, WORDS, frozenset(NAMES), least=0.2, seed=0))
    described = [row for row in rows if row["contrast_asked"] == "description"]
    assert len(described) > 40
    for row in described:
        own, other = by_image[row["images"][0]], by_image[row["images_other"][0]]
        chosen, rejected = text(row["chosen"]), text(row["rejected"])
        assert chosen in own.captions
        assert rejected in other.captions
        said = set(re.findall("|".join(NAMES), chosen))
        assert set(row["contrast_objects"]) == said - set(other.objects or ()) != set()
        assert set(re.findall("|".join(NAMES), rejected)) - set(own.objects or ())

        def similarity(one: Photo, own: Photo = own) -> float:
            return len((own.objects or frozenset()) & (one.objects or frozenset())) / len(
                (own.objects or frozenset()) | (one.objects or frozenset())
            )

        able = [
            one
            for one in photos
            if said - set(one.objects or ())
            and any(set(re.findall("|".join(NAMES), caption)) - set(own.objects or ()) for caption in one.captions)
        ]
        assert row["contrast_similarity"] == pytest.approx(similarity(other)) == pytest.approx(max(map(similarity, able)))


def test_questions_are_true_of_one_photograph_by_turns() -> None:
    photos = random_photos(60, seed=4)
    by_image = {one.image: one for one in photos}
    rows = list(similar_rows(photos, WORDS, frozenset(NAMES), least=0.2, seed=0))
    questions = [row for row in rows if row["contrast_asked"] == "existence"]
    answers = Counter(text(row["chosen"]) for row in questions)
    assert abs(answers["Yes."] - answers["No."]) <= 1
    for row in questions:
        name = re.fullmatch(r"Is there an? (.*) in the image\?", text(row["prompt"]))[1]  # type: ignore[index]
        own, other = (name in (by_image[row[column][0]].objects or ()) for column in ("images", "images_other"))
        assert own != other
        assert (text(row["chosen"]), text(row["rejected"])) == (("Yes.", "No.") if own else ("No.", "Yes."))
        assert row["contrast_objects"] == [name]


def test_an_object_that_only_captions_name_is_not_asked_after() -> None:
    photos = [
        photo("a", "dog cup", "A dog and a cup.", instances="cup"),
        photo("b", "cat cup", "A cat and a cup.", instances="cat cup"),
    ]
    rows = list(similar_rows(photos, WORDS, frozenset(NAMES), least=0.0, seed=0))
    asked = [(row["images"], text(row["prompt"]), text(row["chosen"])) for row in rows if row["contrast_asked"] == "existence"]
    # The dog of the first may be a toy: nothing is asked there. The cat is true.
    assert asked == [(["b.jpg"], "Is there a cat in the image?", "Yes.")]


def test_rows_as_training_reads_them_from_either_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path / "data", random_photos(30, seed=5), part="val")
    assert main(["--data", str(data), "--part", "val", "--out", str(tmp_path / "a")]) == 0
    assert f"rows in {tmp_path / 'a'}" in capsys.readouterr().out
    rows: list[dict[str, Any]] = [json.loads(line) for line in (tmp_path / "a" / "pairs.jsonl").read_text().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert row["rejected"] == row["chosen_other"] != row["chosen"]
        assert len(row["images"]) == len(row["images_other"]) == 1
        assert row["images"] != row["images_other"]
    assert text(rows[0]["chosen"]) in str(read_pair({**rows[0], "images": None}, index=0))
    for name, seed in (("b", 0), ("c", 1)):
        write_similar(data, tmp_path / name, part="val", num_photos=None, least=0.25, seed=seed)
    texts = [(tmp_path / name / "pairs.jsonl").read_bytes() for name in "abc"]
    assert texts[0] == texts[1] != texts[2]
    write_similar(data, tmp_path / "few", part="val", num_photos=10, least=0.25, seed=0)
    few = {row["images"][0] for row in map(json.loads, (tmp_path / "few" / "pairs.jsonl").read_text().splitlines())}
    assert few <= {f"{number}.jpg" for number in range(10)}


def test_none_is_similar_enough(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", [photo("a", "dog", "A dog."), photo("b", "cat", "A cat.")])
    with pytest.raises(UserError, match=r"none of 2 photographs of part pairs has one that is similar by 0.25 or more; lower --least"):
        write_similar(data, tmp_path / "out", part="pairs", num_photos=None, least=0.25, seed=0)
    assert not (tmp_path / "out").exists()


def test_named_objects_are_those_that_are_there() -> None:
    assert named_objects("Puppies? A puppy and a bed.", photo("a", "dog cat"), WORDS) == {"dog"}
