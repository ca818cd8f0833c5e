"""Records of each public set in its exact schema, made by hand; images are noise."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, Value

from tests.tiny_models import random_image


def jpeg(seed: int) -> bytes:
    """An encoded image."""
    buffer = io.BytesIO()
    random_image(seed).save(buffer, format="JPEG")
    return buffer.getvalue()


def save_images(root: Path, *names: str) -> Path:
    """Write images under a root."""
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg(seed))
    return root


def save_with_images(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write Parquet as the hub does: the features stand in the file's metadata, images are structs of bytes and path."""
    columns = {name: Image() if name == "image" else Value("int64" if isinstance(rows[0][name], int) else "string") for name in rows[0]}
    pq.write_table(pa.Table.from_pylist(rows, schema=Features(columns).arrow_schema), path)
    return path


def embedded(seed: int) -> dict[str, Any]:
    """An image as a row of the hub holds it."""
    return {"bytes": jpeg(seed), "path": f"{seed}.jpg"}


BPO = [
    {
        "prompt": "<image>\nWhat is on the table?",
        "image": "coco/train2017/000000000009.jpg",
        "completions": [
            {"score": 1, "response": "A red cup.", "type": "gt"},
            {"score": 0, "response": "A red cup and a dog.", "type": "llm-hal"},
            {"score": 0, "response": "Two blue cats.", "type": "mllm-hal"},
        ],
    },
    {
        "prompt": "Describe it.\n<image>",
        "image": "coco/train2017/000000000010.jpg",
        "completions": [{"score": 0, "response": "A lake.", "type": "mllm-hal"}, {"score": 1, "response": "A road.", "type": "gt"}],
    },
    {
        "prompt": "Describe it.\n<image>",
        "image": "coco/train2017/000000000010.jpg",
        "completions": [{"score": 1, "response": "A road.", "type": "gt"}, {"score": 1, "response": "One road.", "type": "gt-rephrased"}],
    },
]

RLHF_V = [
    {
        "ds_name": "RLHF-V",
        "image": embedded(0),
        "text": json.dumps({"question": "What is he doing?", "chosen": "He runs.", "rejected": "He swims."}),
        "origin_dataset": "VQAv2",
        "origin_split": json.dumps({"model": "Muffin", "type": "question answering"}),
        "idx": 7,
        "image_path": "7.jpg",
    }
]

RLAIF_V = [
    {
        "ds_name": "RLAIF-V",
        "image": embedded(0),
        "question": "How many birds?",
        "chosen": "Two birds.",
        "rejected": "Five birds.",
        "origin_dataset": "VQAv2",
        "origin_split": "{}",
        "idx": "abc-1",
        "image_path": "a.jpg",
    }
]

SPA_VL = [
    {"image": embedded(0), "question": "Is it safe?", "chosen": "No, it is not.", "rejected": "Yes.", "image_name": "x_1.jpg"},
]


def rated(model: str, response: str, *ratings: str) -> dict[str, Any]:
    aspects = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")
    notes = {aspect: {"Rating": rating, "Rationale": "."} for aspect, rating in zip(aspects, ratings, strict=True)}
    return {"annotations": notes, "model": model, "response": response}


VLFEEDBACK = [
    {
        "id": "svit-detail-1",
        "prompt": "What is shown?",
        "models": ["a", "b", "c", "d"],
        "completions": [
            rated("a", "Bad.", "1", "5", "1"),
            rated("b", "Good.", "5", "5", "5"),
            rated("c", "Also good.", "5", "5", "5"),
            rated("d", "Not judged.", "N/A", "5", "5"),
        ],
    }
]

LLAVA_RLHF = [
    {
        "id": "22564",
        "image": "000000022564.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": "A bench."},
            {"from": "human", "value": "What colour?"},
            {"from": "gpt", "value": "to be replaced"},
        ],
        "output_1": {"from": "llava", "value": "Green, I think."},
        "output_2": {"from": "llava", "value": "Brown."},
        "preference": 2,
        "hallucination": True,
        "flipped": False,
    }
]

POVID = [
    {
        "id": "000000000077",
        "image": "000000000077.jpg",
        "conversations": [{"from": "human", "value": "<image>\nDescribe."}, {"from": "gpt", "value": "Boys skate."}],
        "rejected_conversations": [{"from": "human", "value": "<image>\nDescribe."}, {"from": "gpt", "value": "Boys skate with a dog."}],
    }
]

HSA_DPO = [
    {
        "id": 7,
        "question": "What is on the table?",
        "chosen": "A cup.",
        "rejected": "A cup and three dogs.",
        "chosen_score": 1.0,
        "rejected_score": 2.5,
    }
]

SENTINEL_CONTEXT = "The image shows a street. Cars are parked along it."

# As its generation writes it, a line each.
SENTINEL = [
    {
        "image_id": "2315278",
        "image_path": "VG_100K/2315278.jpg",
        "question": "Describe this image.",
        "context": SENTINEL_CONTEXT,
        "y_win": "People walk.",
        "y_lose": "An elephant stands there.",
        "type": "y+",
        "hallu_objects_of_y_lose": ["elephant"],
    },
    {
        "image_id": "2315278",
        "image_path": "VG_100K/2315278.jpg",
        "question": "Describe this image.",
        "context": "",
        "y_win": "A street.",
        "y_lose": "A beach.",
        "type": "y+",
    },
]

# As it is released for LLaVA-1.5: one object over several lines.
SENTINEL_BY_IMAGE = {
    "2315278": [{name: row[name] for name in ("question", "context", "y_win", "y_lose", "type")} for row in SENTINEL],
    "61": [{"question": "What is it?", "context": None, "y_win": "A dog.", "y_lose": "A cat.", "type": None}],
}

# As it is released for LLaMA-Factory.
SENTINEL_INSTRUCTIONS = [
    {
        "instruction": "<image>Describe this image.",
        "context": SENTINEL_CONTEXT,
        "chosen": "People walk.",
        "rejected": "An elephant stands there.",
        "images": ["VG_100K/2315278.jpg"],
    }
]

MM_RLHF = [
    {
        "image": "short/a.jpg",
        "prompt": "<image>\nWhat is it?",
        "chosen": "A bench.",
        "rejected": "A boat.",
        "chosen_reason": "right",
        "rejected_reason": "wrong",
        "is_tie": False,
    },
    {"image": "short/a.jpg", "prompt": "What is it?", "chosen": "A bench.", "rejected": "A boat.", "is_tie": True},
]

MM_RLHF_RATED = [
    {
        "id": "r1",
        "image": "short/a.jpg",
        "prompt": "What is it?",
        "responses": [{"response": "A bench.", "score": 5}, {"response": "A boat.", "score": 1}, {"response": "A seat.", "score": 3}],
    }
]

S_VCO = [
    {
        "chosen_images": ["flickr30k/a.jpg"],
        "rejected_images": ["counterfactuals/a.jpg"],
        "system_prompt": "",
        "instruction_prompt": "Describe the image.",
        "chosen_response": "Two boys run.",
        "rejected_response": "Three boys run.",
    }
]

MS_SWIFT = [
    {
        "messages": [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A kitten."}],
        "images": ["cat.png"],
        "rejected_messages": [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A puppy."}],
        "rejected_images": ["dog.png"],
    },
    {
        "messages": [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A kitten."}],
        "images": ["cat.png"],
        "rejected_response": "A hat.",
        "rejected_images": ["dog.png"],
    },
]
