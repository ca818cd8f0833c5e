"""``mmalign diagnose`` on a tiny run: numbers that agree with the run's log, a page without scripts, and what it refuses."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from mmalign.cli import main
from mmalign.data.datasets import load_rows
from mmalign.data.rows import read_pair
from mmalign.models.load import load_mllm
from tests.data_files import save_rows
from tests.tiny_models import pair_rows

HOSTILE = '<script>alert("x")</script>'


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = pair_rows(8)
    rows[0]["prompt"][0]["content"] = HOSTILE
    rows[1]["id"] = HOSTILE
    return save_rows(tmp_path / "pairs.parquet", rows)


def train(model: Path, data: Path, out: Path, *more: str) -> None:
    words = f"train preference --model {model} --data {data} --out {out} --batch-size 4 --max-steps 4 --logging-steps 1 --save-steps 2"
    assert main([*words.split(), "--learning-rate", "1e-3", *more]) == 0


class Tags(HTMLParser):
    """Collects what a page would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_a_run_is_diagnosed(tiny_llava_dir: Path, pairs: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    train(tiny_llava_dir, pairs, run)
    held = save_rows(tmp_path / "held.parquet", pair_rows(6, seed=50))
    words = ["diagnose", str(pairs), "--model", str(run), "--reference", str(tiny_llava_dir), "--checkpoints", str(run / "checkpoints")]
    assert main([*words, "--held-out", str(held), "--out", str(out), "--credited", "2", "--batch-size", "3"]) == 0
    found = json.loads((out / "diagnosis.json").read_text())
    assert [(point["name"], point["step"]) for point in found["paths"]] == [("start", 0), ("checkpoint-2", 2), ("end", 4)]
    start, _, end = (point["pairs"] for point in found["paths"])
    assert start["chosen"] == start["rejected"] == start["degraded"] == 0.0
    assert end == found["movement"]["pairs"]
    assert end["num_pairs"] == 8
    assert end["rejected"] < end["chosen"]
    assert found["movement"]["held_out"]["num_pairs"] == 6
    assert [entry["step"] for entry in found["training_log"]] == [1, 2, 3, 4]
    # The credits of a response add up to its implicit reward, and those of all pairs to the mean h times beta.
    assert len(found["credits"]) == 2
    assert set(found["separability"]) == {"hidden states", "hidden states, image removed", "length", "first token", "punctuation"}
    assert 0 < found["information"]["token_chosen"] < 1
    assert len(found["layers"]["policy"]["exponent"]) == 2
    assert found["layers"]["policy"] != found["layers"]["start"]
    page = (out / "diagnosis.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert "script" not in tags.tags
    assert HOSTILE not in page
    assert all(source.startswith(("data:", "#")) for source in tags.sources)


def test_credits_are_of_the_whole_response(tiny_llava_dir: Path, pairs: Path, tmp_path: Path) -> None:
    """Over all pairs drawn, their sums give the mean h that the counters report."""
    train(tiny_llava_dir, pairs, tmp_path / "run")
    words = ["diagnose", str(pairs), "--model", str(tmp_path / "run"), "--reference", str(tiny_llava_dir), "--out", str(tmp_path / "out")]
    assert main([*words, "--beta", "0.5", "--credited", "8"]) == 0
    found = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    for side in ("chosen", "rejected"):
        rewards = [sum(credit for _, credit in pair[side]) for pair in found["credits"]]
        assert sum(rewards) / 8 == pytest.approx(0.5 * found["movement"]["pairs"][side], abs=1e-4)


def test_an_adapter_knows_its_start(tiny_llava_dir: Path, pairs: Path, tmp_path: Path) -> None:
    train(tiny_llava_dir, pairs, tmp_path / "run", "--lora-rank", "4")
    words = ["diagnose", str(pairs), "--model", str(tmp_path / "run"), "--credited", "0"]
    assert main([*words, "--out", str(tmp_path / "own")]) == 0
    assert main([*words, "--out", str(tmp_path / "named"), "--reference", str(tiny_llava_dir)]) == 0
    own, named = (json.loads((tmp_path / name / "diagnosis.json").read_text())["movement"] for name in ("own", "named"))
    assert own["pairs"] == pytest.approx(named["pairs"], abs=1e-5)
    assert own["pairs"]["chosen"] != 0


def test_what_it_refuses(tiny_llava_dir: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["diagnose", str(pairs), "--model", str(tiny_llava_dir), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "name it with --reference" in capsys.readouterr().err
    assert main([*words, "--reference", str(tiny_llava_dir), "--checkpoints", str(tmp_path)]) == 2
    assert f"no checkpoint at {tmp_path}" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main([*words, "--max-pairs", "0"])
    assert stop.value.code == 2
    assert "max_pairs is 0" in capsys.readouterr().err


def test_searches_are_worth_what_plain_forwards_say(
    tiny_llava_dir: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each answer's log p is recomputed from the model's own logits on the stock processor's prompt."""
    train(tiny_llava_dir, pairs, tmp_path / "run")
    words = ["diagnose", str(pairs), "--model", str(tmp_path / "run"), "--reference", str(tiny_llava_dir), "--out", str(tmp_path / "out")]
    assert main([*words, "--search", "3", "--search-tokens", "5", "--beta", "0.5", "--batch-size", "4"]) == 0
    found = json.loads((tmp_path / "out" / "diagnosis.json").read_text())["search"]
    assert [(one["model"], one["search"]) for one in found] == [(who, how) for who in ("policy", "start") for how in ("greedy", "beams")]
    models = {name: load_mllm(str(folder), dtype="auto") for name, folder in (("policy", tmp_path / "run"), ("start", tiny_llava_dir))}
    rows = [read_pair(row, index=0) for row in load_rows(pairs)]
    for one in found:
        own, processor = models[one["model"]]
        sums = dict.fromkeys(models, 0.0)
        for row in rows:
            text = processor.apply_chat_template(row.prompt, add_generation_prompt=True, tokenize=False)
            inputs = processor(text=[text], images=[row.images], return_tensors="pt", add_special_tokens=False)
            length, beams = inputs["input_ids"].shape[1], 1 if one["search"] == "greedy" else 3
            ids = own.generate(**inputs, do_sample=False, num_beams=beams, length_penalty=0.0, max_new_tokens=5)
            for name, (model, _) in models.items():
                with torch.no_grad():
                    whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
                    logps = model(**whole).logits[0, length - 1 : -1].float().log_softmax(-1)
                sums[name] += float(logps.gather(-1, ids[0, length:, None]).sum())
        assert one["policy"] == pytest.approx(sums["policy"] / 8, abs=1e-3)
        assert one["start"] == pytest.approx(sums["start"] / 8, abs=1e-3)
        assert one["reward"] == pytest.approx(0.5 * (sums["policy"] - sums["start"]) / 8, abs=1e-3)
    by_name = {(one["model"], one["search"]): one for one in found}
    for who in models:
        assert by_name[who, "beams"][who] >= by_name[who, "greedy"][who] - 1e-4
    assert "policy, beams" in capsys.readouterr().out
    assert "Greedy answers and those of beams" in (tmp_path / "out" / "diagnosis.html").read_text()
    with pytest.raises(SystemExit):
        main([*words, "--search", "1"])
    assert "search is 1; expected at least 2" in capsys.readouterr().err
