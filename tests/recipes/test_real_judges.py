"""A local judge beside what is known: the answers by hand, and the table with judges that never vary."""

import json
from pathlib import Path

from scripts.real.judges import ANSWERS, RIGHT, TEMPLATE, WRONG, main, make_mmhal


def save_template(folder: Path) -> Path:
    folder.mkdir()
    asked = {"question_type": "attribute", "image_src": "", "image_content": ["Dog"], "question": "What?"}
    rows = [{**asked, "image_id": str(i), "gt_answer": f"A dog {i}."} for i in range(4)]
    (folder / TEMPLATE).write_text(json.dumps([*rows, {**asked, "question_type": "other", "image_id": "4", "gt_answer": "A cat."}]))
    return folder


def test_every_second_answer_is_of_another_question(tmp_path: Path) -> None:
    """The last question of a kind is answered with the reference of the first; a kind of one has nothing else."""
    made = make_mmhal(save_template(tmp_path / "mmhal"), tmp_path / "out")
    assert list(made.answers.values()) == ["A dog 0.", "A dog 2.", "A dog 2.", "A dog 0.", "A cat."]
    assert list(made.known.values()) == [RIGHT, WRONG, RIGHT, WRONG, RIGHT]
    assert len((tmp_path / "out" / ANSWERS).read_text().splitlines()) == 5


def test_the_table(tmp_path: Path, tiny_llava_dir: Path, nltk_words: None) -> None:
    """Always 6 is right in 3 of 5, always 0 in 2 of 5, both with no more agreement than chance; a random model can't be read at all."""
    captions = ["A dog and a cat sit there.", "A dog sits there.", "There is not much in there."]
    lines = [{"image_id": i, "text": text} for i, text in enumerate(captions)]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "objects.json").write_text(json.dumps({str(i): ["dog"] for i in range(3)}))
    (tmp_path / "words.txt").write_text("dog, puppy\ncat\nperson, man\n")
    words = [
        "--mmhal",
        save_template(tmp_path / "mmhal"),
        "--captions",
        tmp_path / "captions.jsonl",
        "--objects",
        tmp_path / "objects.json",
    ]
    words += [
        "--synonyms",
        tmp_path / "words.txt",
        "--judge",
        tiny_llava_dir,
        "--length",
        4,
        "--out",
        tmp_path / "out",
        "--report",
        tmp_path,
    ]
    main(list(map(str, words)))
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (tmp_path / "judges.md").read_text().splitlines()]
    rows = {tuple(line[:3]): line[3:] for line in table if line and line[0] in ("mmhal", "object-halbench")}
    assert rows["mmhal", "hallucinating", "always 6"][:1] == ["5 of 5"]
    assert [rows["mmhal", "rating", judge][1].split()[0] for judge in ("always 6", "always 0")] == ["0.60", "0.40"]
    assert [rows["mmhal", "rating", judge][2].split()[0] for judge in ("always 6", "always 0")] == ["0.00", "0.00"]
    # Known are absent, present and none; no objects is right of the last, a person of the first, which names an absent one.
    assert [rows["object-halbench", "description", judge][1].split()[0] for judge in ("no objects", "a person")] == ["0.33", "0.33"]
    assert rows["mmhal", "rating", "local judge"] == ["0 of 5", "", "", ""]
