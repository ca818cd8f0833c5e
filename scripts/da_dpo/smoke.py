"""What a recipe's smoke size runs on: a tiny random model of the recipe's family, a tiny CLIP, and an embedded world's pairs and questions.

    python -m scripts.da_dpo.smoke qwen3-vl-2b --out runs/smoke/inputs

Leaves ``mllm/`` and ``clip/`` (stock checkpoints with their processors), ``world/`` and ``bench/`` (``pope``, ``chair``, ``amber``,
``val2014``, as run.sh takes them). Of AMBER it has questions after objects alone, because descriptions need NLTK's data.
"""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmalign.models.contrastive import build_clip
from mmalign.options.world import WorldOptions
from mmalign.worlds.build import build_world
from scripts.smoke_models import QWEN3, build_tiny_llava, qwen2_5_vl, qwen3_vl, smolvlm

WORLD = {"num_scenes": 8, "num_pairs": 24, "num_eval_scenes": 4, "num_workers": 1}
LLAMA = {key: value for key, value in QWEN3.items() if key != "head_dim"} | {"model_type": "llama", "tie_word_embeddings": False}
CLIP_PART = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
CLIP = {
    "projection_dim": 16,
    "text_config": {**CLIP_PART, "max_position_embeddings": 77},
    "vision_config": {**CLIP_PART, "image_size": 48, "patch_size": 12},
}


def llava() -> tuple[Any, Any]:
    """LLaVA-1.5: CLIP tower, two-layer projector, Llama."""
    return build_tiny_llava(llm=LLAMA, vision_feature_layer=-2)


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava-1.5-7b": llava,
    "llava-1.5-13b": llava,
    "qwen2.5-vl-3b": qwen2_5_vl,
    "qwen3-vl-2b": qwen3_vl,
    "smolvlm2-2.2b": smolvlm,
}


def write_amber(questions: list[dict[str, Any]], folder: Path) -> None:
    """Write the world's questions after objects as AMBER's files have them."""
    folder.mkdir(parents=True)
    annotations = [{"id": i, "type": "discriminative-hallucination", "truth": row["label"]} for i, row in enumerate(questions, 1)]
    queries = [{"id": i, "image": row["image"], "query": row["text"]} for i, row in enumerate(questions, 1)]
    (folder / "annotations.json").write_text(json.dumps(annotations))
    (folder / "query_all.json").write_text(json.dumps(queries))


def main() -> None:
    """Write all of it; the last file is AMBER's query file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=list(FAMILIES))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    out: Path = options.out
    build_world(WorldOptions(out=out / "world", **WORLD))
    parts = {"mllm": FAMILIES[options.recipe](), "clip": build_clip(CLIP, tokenizer=str(out / "world" / "tokenizer"), seed=0)}
    for name, saved in parts.items():
        for part in saved:
            part.save_pretrained(out / name)
    bench, eval_folder = out / "bench", out / "world" / "eval"
    for name in ("pope", "chair"):
        shutil.copytree(eval_folder, bench / name, ignore=shutil.ignore_patterns("images"), dirs_exist_ok=True)
    shutil.copytree(eval_folder / "images", bench / "val2014", dirs_exist_ok=True)
    shutil.rmtree(bench / "amber", ignore_errors=True)
    questions = [json.loads(line) for line in (eval_folder / "pope_random.jsonl").read_text().splitlines()]
    write_amber(questions, bench / "amber")
    shutil.copytree(eval_folder / "images", bench / "amber" / "images")


if __name__ == "__main__":
    main()
