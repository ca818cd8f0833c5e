"""Verdicts, ratings and lists of judges: as they are written, from the end, and what can't be read."""

import time

import pytest

from mmalign.evaluation.verdicts import find_rating, find_verdict, parse_list

RIGHT = [
    "correct",
    "Correct.",
    "CORRECT!",
    "_correct_",
    "It is not incorrect.",
    "never incorrect",
    "The wording differs but it is not incorrect. Verdict: correct",
    "Is the prediction incorrect? No, it agrees. correct",
    "The prediction gives the correct answer.",
    "This is a correct prediction.",
    "incorrectly worded, but correct",
    "not only correct but complete",
    "no incorrect claims: correct",
    "correct, not incorrect",
    "It does not contradict the reference and is correct.",
    "It does not contradict the reference, so it's correct.",
    "The prediction is correct, not because of luck.",
    'Reply with "correct", "incorrect" or "unclear": correct',
    "Final verdict - Correct",
    "I see no reason to call this incorrect.",
    '{"is_correct": true}',
    '{"correct": 1}',
    '{"verdict": "correct", "reason": "a 4 would be incorrect"}',
    "Correct, because the reference says that the claim is incorrect.",
    "**Correct.** The prediction denies it, and a yes is incorrect.",
    "Incorrect. Wait: the prediction says no, so it is correct.",
    "Incorrect because of the date? No. Verdict: correct",
    "The reply should be 'correct'.",
    "\u2018correct\u2019",
    "It agrees, so it is correct. It is not unclear.",
    "Correct? Yes.",
    "**Correct**: Yes",
    "Is the prediction correct?\n\nYes",
    "Correct: no dog is visible, as the reference says.",
    "It agrees, therefore correct. An incorrect prediction would say yes.",
    "The claim that the lines are not parallel is correct.",
    "The prediction that there isn't a dog is correct",
    "It isn't just correct, it is complete.",
    "No part of it is incorrect.",
    "It is without doubt correct.",
    "There is no doubt that it is correct.",
    "The prediction does not contradict the correct answer.",
]
WRONG = [
    "incorrect",
    "This is Incorrect.",
    "in-correct",
    "not correct",
    "The prediction is not correct.",
    "isn't correct",
    "It isn\u2019t correct.",
    "It wasn't entirely correct.",
    "cannot be considered correct",
    "The answer is far from correct.",
    "There are no grounds on which it is correct.",
    "**Incorrect**",
    "**Verdict:** *incorrect*",
    "Verdict: not correct",
    "Incorrect. The correct answer is No.",
    "The correct answer is no, so the prediction is incorrect.",
    "The prediction does not give the correct answer.",
    "Incorrect. A yes would be correct.",
    "incorrect, not correct",
    "correct/incorrect: incorrect",
    "Correct? No. Incorrect.",
    "Correct at first sight. But the prediction is incorrect.",
    '{"verdict": "incorrect", "reason": "the correct one is 3"}',
    '```json\n{"correct": false}\n```',
    "Incorrect - the reference is correct that there is no dog.",
    "Incorrect\n\nThe second sentence is correct, the first is not.",
    "The verdict is 'incorrect'.",
    "The prediction is not 'correct'.",
    'The prediction is not "correct".',
    "The prediction is incorrect. To be correct, it should say no.",
    "It is in no way correct.",
    "The response fails to be correct.",
    "It is partially correct at best: incorrect.",
    "Correct? No.",
    "Correct: No",
    "Is the reference correct? Yes\nVerdict: incorrect",
    "Is the reference correct? Yes\nThe prediction is incorrect.",
    "Is it correct? It says yes.\nCorrect = false",
    "None of the statements are correct.",
    "The statement is no longer correct.",
    "I doubt that it is correct.",
    "I'm unable to say it is correct.",
    "I don't think it is correct.",
    "It is not true that the answer is correct.",
    "The answer is not one that is correct.",
    "The prediction that it is not red is incorrect.",
    "It contradicts the correct answer.",
    "It lacks the correct count.",
    "A correct answer would be no, so this is incorrect.",
]
UNCLEAR = [
    "Partially correct.",
    "The answer is only half-correct.",
    "unclear",
    "",
    "neither correct nor incorrect",
    "I can't tell whether it is correct or incorrect. unclear",
    "It is unclear whether the prediction is correct.",
    "The prediction says yes.",
    "unclear, not correct or incorrect",
    "incorrectly",
    "neither 'correct' nor 'incorrect'",
    "The prediction says yes. The reference is correct.",
    "It misses one; correct is 3.",
    '{"correct": null}',
    '{"verdict": 0.5, "reason": "half of it is correct"}',
]


@pytest.mark.parametrize(
    ("reply", "verdict"), [*((text, True) for text in RIGHT), *((text, False) for text in WRONG), *((text, None) for text in UNCLEAR)]
)
def test_verdicts(reply: str, verdict: bool | None) -> None:
    assert find_verdict(reply) is verdict


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("Rating: 5/6", 5),
        ("Rating: 5 out of 6", 5),
        ("Rating: **5** out of 6", 5),
        ("**Rating:** 5", 5),
        ("**Rating: 5**", 5),
        ("Rating (0-6): 5", 5),
        ("Rating on a scale of 0 to 6: 5", 5),
        ("Rating = 5", 5),
        ("Rating - 5", 5),
        ("Rating: [[5]]", 5),
        ("### Rating\n5", 5),
        ("My rating would be 4", 4),
        ("The rating is 5.", 5),
        ("Rating: 5.0", 5),
        ("<rating>5</rating>", 5),
        ('```json\n{"reason": "fine", "rating": 5}\n```', 5),
        ('{"rating": "5/6"}', 5),
        ('{"rating": "5 - very informative, 2 dogs", "reason": "x"}', 5),
        ('{"rating": "3 or 4"}', None),
        ("Rating of the response: 5", 5),
        ("The rating for this response is 5.", 5),
        ("5", 5),
        ("**5/6**", 5),
        ("It is complete.\n\n5", 5),
        ("Rating: 2 would be too low.\nRating: 5", 5),
        ("Rating: 2. A rating of 6 would need more detail.", 2),
        ("A rating of 6 would need more detail.", None),
        ("A rating of 5 would be right.", 5),
        ("Rating: 3\n\nNote that a score of 0 was considered.", 3),
        ("A rating of 6 is too high: my rating is 4.", 4),
        ("I give a rating of 3.", 3),
        ("A rating of 1, for it hallucinates. I'd have given a rating of 4 else.", 1),
        ("The rating should be 5", 5),
        ("My rating is therefore 5", 5),
        ("Rating\uff1a3", 3),
        ("Rating: 5\n\nThe response names 3 dogs.", 5),
        ("Rating: 5 (1 of 2 objects)", 5),
        ("Rating: 10", None),
        ("Rating: -1", None),
        ("Rating: 4.5", None),
        ("Rating: 5/10", None),
        ("Rating: 3 or 4", None),
        ("Rating: very good", None),
        ("The dog has 4 legs.", None),
        ("", None),
    ],
)
def test_ratings(reply: str, rating: int | None) -> None:
    assert find_rating(reply) == rating


@pytest.mark.parametrize(
    ("reply", "names"),
    [
        ('```\n["dog", "cat"]\n```', ["dog", "cat"]),
        ('~~~python\n["dog"]\n~~~', ["dog"]),
        ('[\n "dog",\n "cat"\n]', ["dog", "cat"]),
        ("['dog', 'cat']", ["dog", "cat"]),
        ('["dog", "cat",]', ["dog", "cat"]),
        ('The list is ["dog", "cat"]. I hope that it helps!', ["dog", "cat"]),
        ('For example ["x"] would be a list. Here: ["dog"]', ["dog"]),
        ('It is ["driver\'s seat", "a [b] c"] here', ["driver's seat", "a [b] c"]),
        ('{"objects": ["dog"]}', ["dog"]),
        ('```json\n{"objects": []}\n```', []),
        ('{"count": 1, "objects": ["dog"]}', ["dog"]),
        ('{"present": ["dog"], "absent": ["cat"]}', None),
        ("- dog\n- traffic light", ["dog", "traffic light"]),
        ("**Objects:**\n1. dog\n2. `cat`", ["dog", "cat"]),
        ("I'm sorry, but I can't help with that.", None),
        ("dog and car", None),
        ("- dog\nand a car", None),
    ],
)
def test_lists_in_any_dress(reply: str, names: list[str] | None) -> None:
    assert parse_list(reply) == names


@pytest.mark.parametrize("text", ['{"a":' * 5000, "[" * 3000 + "]" * 3000, "{" * 20_000], ids=["objects", "lists", "braces"])
def test_a_judge_that_repeats_a_bracket_is_read_at_once(text: str) -> None:
    start = time.process_time()
    assert find_verdict(text) is None
    assert parse_list(text) is None
    assert time.process_time() - start < 20
