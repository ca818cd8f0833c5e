"""Image weakening: the schedule and the sign by hand, decoding against a plain loop, resume to the same bytes."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PaliGemmaProcessor

from data_tools.weaken_images import main
from data_tools.weakening import Weakener, add_noise, hallucinating_logits
from mmalign.data.datasets import load_rows
from mmalign.data.rows import read_pair
from mmalign.data.weaken import alpha_bars
from tests.data_files import chat_rows, save_rows
from tests.tiny_families import FAMILIES
from tests.tiny_models import build_tiny_llava, random_image, random_text

ROOT = Path(__file__).resolve().parents[2]

DECODING = {"step": 900, "contrast": 1.0, "plausibility": 0.2, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def loaded(tiny_llava_dir: Path) -> tuple[Any, Any]:
    return AutoModelForImageTextToText.from_pretrained(tiny_llava_dir).eval(), AutoProcessor.from_pretrained(tiny_llava_dir)


def test_schedule_by_hand() -> None:
    bars = alpha_bars()
    # beta_0 = sigmoid(-6) x 0.00499 + 0.00001 = 0.0024726 x 0.00499 + 0.00001 = 2.2338e-5.
    assert bars[0].item() == pytest.approx(1 - 2.2338e-5, abs=1e-9)
    # By symmetry of the sigmoid all betas sum to 1000 x (0.00499 / 2 + 0.00001) = 2.505; -log(1 - b) exceeds b by little.
    assert -bars[-1].log().item() == pytest.approx(2.505, rel=3e-3)
    assert bool((bars.diff() < 0).all())


def test_noise_has_the_schedules_moments() -> None:
    pixels = torch.full((3, 200, 200), 2.0)
    noised = add_noise(pixels, step=900, generator=torch.Generator().manual_seed(0))
    kept = alpha_bars()[900].item()
    assert noised.mean().item() == pytest.approx(2 * kept**0.5, abs=0.01)
    assert noised.std().item() == pytest.approx((1 - kept) ** 0.5, abs=0.01)
    with pytest.raises(ValueError, match="step is 1000; expected 0 to 999"):
        add_noise(pixels, step=1000, generator=torch.Generator())


def test_the_sign_by_hand() -> None:
    """The image shows a dog (token 0); without it the model expects a cat (1); token 2 is what neither would say."""
    clean, noisy = torch.tensor([[3.0, 1.0, -9.0]]), torch.tensor([[2.0, 2.5, -9.5]])
    got = hallucinating_logits(noisy, clean, contrast=1.0, plausibility=0.2)
    assert got.tolist() == [[2 * 2.0 - 3.0, 2 * 2.5 - 1.0, -torch.inf]]
    assert got.argmax().item() == 1, "the hallucination is amplified"
    subtracted = hallucinating_logits(clean, noisy, contrast=1.0, plausibility=0.2)
    assert subtracted.argmax().item() == 0, "with the branches exchanged the dog stays, as VCD wants it"


def test_no_contrast_is_the_noised_image_alone() -> None:
    noisy, clean = torch.randn(2, 5), torch.randn(2, 5)
    got = hallucinating_logits(noisy, clean, contrast=0.0, plausibility=1e-9)
    torch.testing.assert_close(got, noisy)


def prompts_and_images(count: int) -> tuple[list[Any], list[Any]]:
    prompts = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": random_text(i, 2 + i)}]}] for i in range(count)]
    return prompts, [[random_image(i)] for i in range(count)]


def plain_loop(model: Any, processor: Any, prompt: Any, image: Any, noised: torch.Tensor) -> str:
    """Two whole forwards a token, without cache, batch or logits processor."""
    text = processor.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[text], images=[[image]], return_tensors="pt")
    pixels, ids = inputs.pop("pixel_values"), inputs.pop("input_ids")
    start = ids.shape[1]
    # PaliGemma's processor makes labels, which a forward would hold against the logits.
    inputs.pop("labels", None)
    for _ in range(DECODING["max_new_tokens"]):
        # What belongs to each token grows with the text: it is seen, and is text.
        grown = {"attention_mask": 1, "token_type_ids": int(isinstance(processor, PaliGemmaProcessor)), "mm_token_type_ids": 0}
        rest = {
            key: torch.nn.functional.pad(value, (0, ids.shape[1] - start), value=grown[key]) if key in grown else value
            for key, value in inputs.items()
        }
        with torch.no_grad():
            noisy = model(input_ids=ids, pixel_values=noised, use_cache=False, **rest).logits[0, -1]
            clean = model(input_ids=ids, pixel_values=pixels, use_cache=False, **rest).logits[0, -1]
        scores = 2 * noisy - clean
        scores[torch.softmax(noisy, 0) < 0.2 * torch.softmax(noisy, 0).max()] = -torch.inf
        token = int(scores.argmax())
        if token == model.generation_config.eos_token_id:
            break
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    return processor.decode(ids[0, start:], skip_special_tokens=True).strip()


def test_equals_a_plain_loop_of_two_forwards(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    prompts, images = prompts_and_images(3)
    weakener = Weakener(model, processor, temperature=0.0, **DECODING)
    got = weakener(list(map(weakener.read, prompts, images)), seeds=[5, 6, 7])
    pixels = processor(text=["<image>"] * 3, images=images, return_tensors="pt")["pixel_values"]
    noised = [add_noise(row[None], step=900, generator=torch.Generator().manual_seed(5 + i)) for i, row in enumerate(pixels)]
    expected = [plain_loop(model, processor, prompt, image[0], noise) for prompt, image, noise in zip(prompts, images, noised, strict=True)]
    assert got == expected
    assert len(set(got)) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_the_plain_loop(family: str) -> None:
    """Tiles, native resolution, positions on three axes, experts: the two halves keep their own images."""
    model, processor = FAMILIES[family]()
    prompts, images = prompts_and_images(3)
    weakener = Weakener(model, processor, temperature=0.0, **DECODING)
    got = weakener(list(map(weakener.read, prompts, images)), seeds=[5, 6, 7])
    texts = [processor.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False) for prompt in prompts]
    alone = [processor(text=[text], images=[row], return_tensors="pt")["pixel_values"] for text, row in zip(texts, images, strict=True)]
    noised = [add_noise(pixels, step=900, generator=torch.Generator().manual_seed(5 + i)) for i, pixels in enumerate(alone)]
    expected = [plain_loop(model, processor, p, i[0], n) for p, i, n in zip(prompts, images, noised, strict=True)]
    assert got == expected


def test_sampling_is_seeded(loaded: tuple[Any, Any]) -> None:
    prompts, images = prompts_and_images(2)
    options = {"temperature": 3.0, **DECODING, "plausibility": 1e-6}
    weakener = Weakener(*loaded, **options)
    read = list(map(weakener.read, prompts, images))
    first, again, other = (weakener(read, seeds=seeds) for seeds in ([1, 2], [1, 2], [3, 4]))
    assert first == again != other
    assert [*weakener(read[1:], seeds=[2]), *weakener(read[:1], seeds=[1])] == first[::-1]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_pairs_and_resume_to_the_same_bytes(tmp_path: Path, tiny_llava_dir: Path) -> None:
    rows = chat_rows(5)
    data = save_rows(tmp_path / "sft.parquet", rows)
    words = [str(data), "--model", str(tiny_llava_dir), "--max-new-tokens", "5", "--batch-size", "2", "--max-reject-share", "1"]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    pairs = [read_pair(raw, index=i) for i, raw in enumerate(load_rows(tmp_path / "whole" / "pairs"))]
    # A random model's answer may be empty, which is no pair.
    good = {row["id"]: row["messages"][-1]["content"] for row in rows}
    assert len(pairs) >= 3
    assert {pair.id: pair.chosen for pair in pairs}.items() <= good.items()
    assert {pair.source for pair in pairs} == {"image-weakening"}
    assert all(pair.rejected != pair.chosen for pair in pairs)
    # What a kill leaves: the first chunk, and half of the second under a name of the process's own.
    chunks = tmp_path / "stopped" / "chunks"
    chunks.mkdir(parents=True)
    for name in ("build.json", "chunks/000000000.jsonl"):
        (tmp_path / "stopped" / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    partial = chunks / "000000002.jsonl.other-1.partial"
    partial.write_text('{"index": 2, "rej')
    assert main([*words, "--out", str(tmp_path / "stopped")]) == 0
    partial.unlink()
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_process_goes_on_and_ends_the_same(tmp_path: Path, tiny_llava_dir: Path) -> None:
    """SIGKILL, at whatever point it strikes."""
    data = save_rows(tmp_path / "sft.parquet", chat_rows(24))
    words = [str(data), "--model", str(tiny_llava_dir), "--max-new-tokens", "20", "--batch-size", "1", "--max-reject-share", "1"]
    words += ["--temperature", "2"]
    code = "import sys\nfrom data_tools.weaken_images import main\nsys.exit(main(sys.argv[1:]))"
    chunks = tmp_path / "killed" / "chunks"
    process = subprocess.Popen([sys.executable, "-c", code, *words, "--out", str(tmp_path / "killed")], cwd=ROOT)
    while process.poll() is None and len(list(chunks.glob("*.jsonl"))) < 5:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it had not ended by itself"
    done = {path.name: path.stat().st_mtime_ns for path in chunks.glob("*.jsonl")}
    assert 5 <= len(done) < 24
    assert main([*words, "--out", str(tmp_path / "killed")]) == 0
    assert {name: (chunks / name).stat().st_mtime_ns for name in done} == done, "nothing is done twice"
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    for partial in chunks.glob("*.partial"):
        partial.unlink()
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_other_weights_are_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint that was trained on in place has the same path."""
    data = save_rows(tmp_path / "sft.parquet", chat_rows(2))
    words = f"{data} --model {tmp_path}/model --max-new-tokens 3 --max-reject-share 1 --out {tmp_path}/out".split()
    for seed, status in ((0, 0), (0, 0), (1, 2)):
        model, processor = build_tiny_llava(seed=seed)
        model.save_pretrained(tmp_path / "model")
        processor.save_pretrained(tmp_path / "model")
        assert main(words) == status
    assert "holds another run: its model_weights is 'weights" in capsys.readouterr().err


def test_seeds_have_a_range(tmp_path: Path, tiny_llava_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = save_rows(tmp_path / "sft.parquet", chat_rows(1))
    assert main([str(data), "--model", str(tiny_llava_dir), "--seed", str(2**31), "--out", str(tmp_path / "out")]) == 2
    assert f"seed is {2**31}; expected 0 to 2147483647" in capsys.readouterr().err


def test_another_run_and_bad_options_are_refused(tmp_path: Path, tiny_llava_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = save_rows(tmp_path / "sft.parquet", chat_rows(2))
    words = [str(data), "--model", str(tiny_llava_dir), "--max-new-tokens", "3", "--max-reject-share", "1", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert main([*words, "--step", "500"]) == 2
    assert "holds another run: its step is 900, not 500; choose another --out" in capsys.readouterr().err
    assert main([*words, "--step", "1000"]) == 2
    assert "step is 1000; expected 0 to 999" in capsys.readouterr().err
    assert main([*words, "--plausibility", "0"]) == 2
    assert "plausibility is 0.0" in capsys.readouterr().err


def test_a_row_without_image_is_rejected(tmp_path: Path, tiny_llava_dir: Path) -> None:
    rows = chat_rows(3)
    rows[1]["images"] = []
    data = save_rows(tmp_path / "sft.parquet", rows)
    words = [str(data), "--model", str(tiny_llava_dir), "--max-new-tokens", "4", "--max-reject-share", "0.7"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert {"id": "pair-1", "reason": "the row has no image to weaken"} in rejects


def test_a_picture_that_the_processor_refuses_is_a_reject(tmp_path: Path) -> None:
    for part in FAMILIES["qwen2-vl"]():
        part.save_pretrained(tmp_path / "model")
    rows = chat_rows(3)
    rows[1]["images"] = [random_image(1, (4, 910))]
    data = save_rows(tmp_path / "sft.parquet", rows)
    words = [str(data), "--model", str(tmp_path / "model"), "--max-new-tokens", "4", "--max-reject-share", "0.7"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    reasons = {row["id"]: row["reason"] for row in map(json.loads, (tmp_path / "out" / "rejects.jsonl").read_text().splitlines())}
    assert "Qwen2VLProcessor refuses the row: absolute aspect ratio" in reasons["pair-1"]
