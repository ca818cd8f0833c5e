#!/usr/bin/env bash
# LLaVA-MoD (arXiv:2408.15881): a small sparse multimodal LLM from a 7B teacher, in four trainings.
#
#   TEACHER=org/llava-qwen2.5-7b LLM=Qwen/Qwen2.5-0.5B-Instruct \
#   CAPTIONS=pretrain/ CHATS=d2d/ TASKS=d2s/ PAIRS=rlaif_v/ OUT=runs/llava_mod bash scripts/llava_mod/run.sh
#   SMOKE=1 OUT=runs/llava_mod_smoke bash scripts/llava_mod/run.sh          # all stages on tiny models, about two minutes on a CPU core
#
# TEACHER is a multimodal LLM with LLM's tokenizer and the chat template that the student gets (TEMPLATE). Qwen3-0.6B: LLM=Qwen/Qwen3-0.6B
# with a teacher on Qwen3-8B. VISION is shared by both in the paper. Data: chats with images, messages; pairs with TRL's columns.
# More devices: LAUNCH="accelerate launch --config_file FILE -m" and smaller gradient_accumulation_steps.
#
# Expected cost: the paper names 960 GPU hours (16 A100) for its whole pipeline of about 5M rows. Measured result of this recipe: none yet,
# but for the smoke size, which shows that the stages fit together and nothing of quality.
# A stopped run goes on where it stopped when the same command is given again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
OUT=${OUT:-runs/llava_mod}
PYTHON=${PYTHON:-python}
LAUNCH=${LAUNCH:-$PYTHON -m}
TEMPLATE=${TEMPLATE:-chatml}
small=() compose=()

mmalign() { echo "+ mmalign $*"; $PYTHON -m mmalign "$@"; }
train() { # kind, stage, options: one training, left alone where it is done
    local kind=$1 stage=$2
    shift 2
    if [ -f "$OUT/$stage/train_log.json" ]; then echo "$OUT/$stage is done"; return; fi
    echo "+ mmalign train $kind --config $here/$stage.yaml --out $OUT/$stage $*"
    $LAUNCH mmalign train "$kind" --config "$here/$stage.yaml" --out "$OUT/$stage" "$@" ${small[@]+"${small[@]}"}
}
make_once() { # file that shows that it is done, command
    [ -f "$1" ] || mmalign "${@:2}"
}

if [ -n "${SMOKE:-}" ]; then
    # A world of drawn shapes; a teacher twice as wide as the student, trained on it for a few steps.
    world=$OUT/world TEMPLATE=vicuna
    make_once "$world/world.json" world build --out "$world" --num-scenes 48 --num-pairs 24 --num-eval-scenes 12
    "$PYTHON" "$here/smoke_models.py" "$OUT"
    small=(--max-steps 3 --batch-size 4 --gradient-accumulation-steps 1 --logging-steps 1 --precision float32 --dtype float32)
    make_once "$OUT/teacher_start/config.json" compose --vision "$OUT/vision.json" --llm "$OUT/teacher.json" --tokenizer "$world/tokenizer" \
        --out "$OUT/teacher_start"
    if [ ! -f "$OUT/teacher/train_log.json" ]; then
        mmalign train sft --model "$OUT/teacher_start" --data "$world/sft" --out "$OUT/teacher" --learning-rate 1e-3 "${small[@]}"
    fi
    TEACHER=$OUT/teacher VISION=$OUT/vision.json LLM=$OUT/student.json
    CAPTIONS=$world/sft CHATS=$world/sft TASKS=$world/sft PAIRS=$world/pairs
    compose=(--tokenizer "$world/tokenizer")
fi
VISION=${VISION:-openai/clip-vit-large-patch14-336}
: "${TEACHER:?a multimodal LLM: folder or hub id}" "${LLM:?a language model with the tokenizer of the teacher}"
: "${CAPTIONS:?captions for the projector}" "${CHATS:?chats}" "${TASKS:?multi-task chats}" "${PAIRS:?preference pairs}"

make_once "$OUT/student/config.json" compose --vision "$VISION" --llm "$LLM" --chat-template "$TEMPLATE" --out "$OUT/student" \
    ${compose[@]+"${compose[@]}"}
train sft init --model "$OUT/student" --data "$CAPTIONS"
train mimic d2d --model "$OUT/init" --data "$CHATS" --teacher "$TEACHER"
# 4 experts, 2 a token, every second layer; the router as PyTorch initialises it, LLaVA-MoD's.
make_once "$OUT/sparse/config.json" upcycle "$OUT/d2d" --num-experts 4 --top-k 2 --layers alternate --router-init uniform --out "$OUT/sparse"
train mimic d2s --model "$OUT/sparse" --data "$TASKS" --teacher "$TEACHER"
train preference preference --model "$OUT/d2s" --data "$PAIRS" --reference-model "$TEACHER"
echo "the sparse student is in $OUT/preference"
