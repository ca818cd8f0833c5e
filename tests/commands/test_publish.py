"""``mmalign publish`` against a stand-in of the Hub: what goes, what stays, what is refused."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from datasets import Dataset
from huggingface_hub import DatasetCard, ModelCard

from mmalign.cli import main
from tests.commands.hub_stand_in import TOKEN, Hub, running_hub
from tests.commands.training import train


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as found:
        yield found


@pytest.fixture(scope="module")
def adapter(tiny_llava_dir: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapter") / "out"
    assert train(tiny_llava_dir, pairs, out, "--lora-rank", "2", "--max-steps", "2", "--save-steps", "1", kind="preference") == 0
    return out


def scored(folder: Path) -> Path:
    folder.mkdir()
    columns = {"id": ["a"], "prompt": ["What?"], "chosen": ["a cat"], "rejected": ["a dog"], "difficulty": [0.25], "gap_contrastive": [0.1]}
    # As scoring has it: the difference of the sums.
    columns |= {"gap_generative": [-3.0], "reference_logps_chosen": [-9.0], "reference_logps_rejected": [-6.0]}
    Dataset.from_dict(columns).to_parquet(str(folder / "scored.parquet"))
    proxy = {"mean": 0.1, "std": 0.2, "accuracy": 0.75, "weight": 1.0}
    (folder / "difficulty.json").write_text(json.dumps({"num_scored": 1, "num_rejected": 2, "statistics": {"all": {"contrastive": proxy}}}))
    (folder / "scoring.json").write_text(json.dumps({"clip": "openai/clip-vit-base-patch32", "mllm": "org/small"}))
    return folder


def publish(hub: Hub, *words: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, "-m", "mmalign", "publish", *words], env=environment, capture_output=True, text=True, check=False
    )


def test_an_adapter_goes_with_its_card_and_the_hub_id_of_its_base(hub: Hub, adapter: Path) -> None:
    done = publish(hub, str(adapter), "me/aligned", "--private", "--base-model", "org/base")
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"published: {hub.address}/me/aligned" in done.stdout
    assert TOKEN not in done.stdout + done.stderr
    repo = hub.repos["me/aligned"]
    assert (repo["kind"], repo["private"]) == ("model", True)
    assert repo["files"]["adapter_model.safetensors"] == (adapter / "adapter_model.safetensors").read_bytes()
    assert json.loads(repo["files"]["adapter_config.json"])["base_model_name_or_path"] == "org/base"
    assert ModelCard(repo["files"]["README.md"].decode()).data.base_model == "org/base"
    assert not [name for name in repo["files"] if "/" in name or name.endswith((".pt", ".partial"))]
    assert hub.commits == ["Upload with mmalign"]
    # The folder itself still names the base on this machine.
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] != "org/base"


def test_a_base_of_this_machine_is_refused(hub: Hub, adapter: Path) -> None:
    done = publish(hub, str(adapter), "me/aligned")
    assert done.returncode == 2
    assert "a folder of this machine; give its hub id with --base-model" in done.stderr
    assert not hub.repos


def test_what_is_merged_and_upcycled_goes_with_a_card_of_its_own(
    adapter: Path, tiny_llava_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The card of a merged model has the adapter's data and training, and names no base of this machine as one to load."""
    merged, sparse = tmp_path / "merged", tmp_path / "sparse"
    assert main(["merge", str(adapter), "--out", str(merged)]) == 0
    assert main(["upcycle", str(merged), "--out", str(sparse), "--top-k", "1"]) == 0
    for folder in (merged, sparse):
        assert main(["publish", str(folder), "me/whole", "--dry-run"]) == 0
        assert "README.md" in capsys.readouterr().out
    card, trained = ModelCard.load(merged / "README.md"), ModelCard.load(adapter / "README.md")
    assert (card.data.library_name, card.data.base_model, card.data.tags) == ("transformers", None, ["mmalign", "preference", "merge"])
    assert f"This is the LoRA adapter {adapter} merged into {tiny_llava_dir}." in card.text
    data, recipe = (trained.text.split(f"## {name}\n")[1].split("\n\nCode: ")[0].split("\n## ")[0] for name in ("Data", "Training"))
    assert data in card.text
    assert f"{recipe} Then `mmalign merge`, which trains nothing." in card.text
    text = (sparse / "README.md").read_text()
    assert f"None here: what {merged} was trained on, its own card says.\n\n## Training\n\n`mmalign upcycle`, which" in text
    assert "4 copies of feed-forward networks, 1 per token" in text


def test_scored_pairs_go_as_a_data_set_with_a_card(hub: Hub, tmp_path: Path) -> None:
    folder = scored(tmp_path / "scores")
    done = publish(hub, str(folder), "me/pairs", "--license", "cc-by-4.0", "--message", "First")
    assert done.returncode == 0, done.stderr[-2000:]
    repo = hub.repos["me/pairs"]
    assert repo["kind"] == "dataset"
    assert set(repo["files"]) == {"scored.parquet", "difficulty.json", "scoring.json", "README.md"}
    card = DatasetCard(repo["files"]["README.md"].decode())
    assert card.data.license == "cc-by-4.0"
    assert card.data.configs == [{"config_name": "default", "data_files": "scored.parquet"}]
    assert "1 preference pairs with their difficulty (DA-DPO), scored by mmalign; 2 rows were broken" in card.text
    assert "| all | contrastive | +0.1 | 0.2 | 75.0 | 1.000 |" in card.text
    assert "openai/clip-vit-base-patch32" in card.text
    assert "| `gap_contrastive` | CLIP cosine" in card.text
    assert "| `gap_generative` | summed log-probability" in card.text
    assert hub.commits == ["First"]


def test_pages_go_as_a_static_space(hub: Hub, tmp_path: Path) -> None:
    for name in ("report.html", "difficulty.html", "report.csv"):
        (tmp_path / name).write_text("x")
    done = publish(hub, str(tmp_path), "me/results")
    assert done.returncode == 0, done.stderr[-2000:]
    repo = hub.repos["me/results"]
    assert (repo["kind"], repo["sdk"]) == ("space", "static")
    assert b"app_file: report.html" in repo["files"]["README.md"]


def test_dry_run_sends_nothing_and_needs_no_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = scored(tmp_path / "scores")
    assert main(["publish", str(folder), "me/pairs", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "dataset me/pairs" in said
    assert f"{(folder / 'scored.parquet').stat().st_size:,} bytes  scored.parquet" in said
    assert "nothing was sent" in said


def test_what_looks_like_a_key_is_not_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = scored(tmp_path / "scores")
    (folder / "scoring.json").write_text(json.dumps({"clip": TOKEN}))
    assert main(["publish", str(folder), "me/pairs", "--dry-run"]) == 2
    said = capsys.readouterr()
    assert "scoring.json holds what looks like a token of the Hub" in said.err
    assert TOKEN not in said.out + said.err


def test_faults_are_told_in_a_line(hub: Hub, tmp_path: Path) -> None:
    folder = str(scored(tmp_path / "scores"))
    wrong = publish(hub, folder, "me/pairs", token="hf_" + "w" * 30)
    assert wrong.returncode == 2
    assert "the Hub refuses me/pairs with status 401" in wrong.stderr
    assert "hf_w" not in wrong.stderr
    assert "status 403" in publish(hub, folder, "others/pairs").stderr
    assert "expected OWNER/NAME" in publish(hub, folder, "a/b/c").stderr
    assert "holds nothing to publish" in publish(hub, str(tmp_path / "none"), "me/pairs").stderr
