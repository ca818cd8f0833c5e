#!/usr/bin/env bash
# LLaVA-MoD (arXiv:2408.15881): a small sparse multimodal LLM from a 7B teacher, in four trainings.
#
#   scripts/llava_mod/run.sh --teacher org/llava-qwen2.5-7b --llm Qwen/Qwen2.5-0.5B-Instruct \
#       --captions pretrain/ --chats d2d/ --tasks d2s/ --pairs rlaif_v/
#   scripts/llava_mod/run.sh --teacher-llm Qwen/Qwen2.5-7B-Instruct --instructions mix665k/ ...   # makes the teacher first
#   scripts/llava_mod/run.sh --smoke      # all stages on tiny models, about three minutes on a CPU core
#
#   --teacher MODEL     a multimodal LLM, folder or hub id, with the tokenizer of --llm and the chat template that the student gets
#   --teacher-llm MODEL instead of --teacher: its language model, which becomes a teacher as LLaVA-1.5 was made (--captions, then
#   --instructions DATA chats, LLaVA-1.5's mix of 665k)
#   --llm MODEL         the student's language model; Qwen3-0.6B: Qwen/Qwen3-0.6B, with a teacher on Qwen3-8B
#   --vision MODEL      the student's vision tower (openai/clip-vit-large-patch14-336, shared by both in the paper)
#   --template NAME     the student's chat template (chatml)
#   --captions DATA     chats with images, messages for the projector; --chats DATA for dense-to-dense, --tasks DATA for dense-to-sparse
#   --pairs DATA        preference pairs with TRL's columns. Which public sets these are, and how they are converted: docs/distillation.md
#   --launch COMMAND    what starts a training ("python -m"); more devices: "accelerate launch --config_file FILE -m", and smaller
#                       gradient_accumulation_steps
#   --out DIR           runs/llava_mod
#
# Expected cost: the paper names 960 GPU hours (16 A100) for its whole pipeline of about 5M rows. Measured result of this recipe: none yet,
# but for the smoke size, which shows that the stages fit together and nothing of quality.
# A stopped run resumes where it stopped when the same command is given again.
set -euo pipefail

die() { echo "run.sh: $*" >&2; exit 2; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
home=scripts/llava_mod
python=${PYTHON:-python}
teacher="" llm="" vision=openai/clip-vit-large-patch14-336 template=chatml captions="" chats="" tasks="" pairs=""
teacher_llm="" instructions=""
launch="$python -m" out=runs/llava_mod smoke=false
while [[ $# -gt 0 ]]; do
  case $1 in
    --teacher | --teacher-llm | --llm | --vision | --template | --captions | --instructions | --chats | --tasks | --pairs | --launch \
      | --out)
      [[ $# -ge 2 && $2 != --* ]] || die "$1 needs a value"
      name=${1#--}; printf -v "${name//-/_}" %s "$2"; shift 2 ;;
    --smoke) smoke=true; shift ;;
    -h | --help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "$root/$home/run.sh"; exit 0 ;;
    *) die "unknown option $1; see run.sh --help" ;;
  esac
done
small=() compose=()

mmalign() { echo "+ mmalign $*"; "$python" -m mmalign "$@"; }
train() { # kind, stage, options: one training, left alone where it is done; stage FOLDER/NAME is of NAME.yaml
  local kind=$1 stage=$2 config=$root/$home/${2##*/}.yaml; shift 2
  if [[ -f $out/$stage/train_log.json ]]; then echo "$out/$stage is done"; return; fi
  echo "+ mmalign train $kind --config $config --out $out/$stage $*"
  $launch mmalign train "$kind" --config "$config" --out "$out/$stage" "$@" ${small[@]+"${small[@]}"}
}
make_once() { # file that shows that it is done, command
  [[ -f $1 ]] || mmalign "${@:2}"
}

if $smoke; then
  # A world of drawn shapes, its chats written as LLaVA's JSON; a teacher twice as wide as the student, trained on it for a few steps.
  world=$out/world template=vicuna
  make_once "$world/world.json" world build --out "$world" --num-scenes 48 --num-pairs 24 --num-eval-scenes 12
  "$python" "$root/$home/smoke.py" --world "$world" --out "$out"
  if [[ ! -d $out/chats ]]; then
    "$python" "$root/data_tools/convert_chats.py" llava "$out/llava.json" --image-root "$out/images" --embed-images --out "$out/chats"
  fi
  small=(--max-steps 3 --batch-size 4 --gradient-accumulation-steps 1 --logging-steps 1 --precision float32 --dtype float32)
  teacher_llm=$out/teacher.json vision=$out/vision.json llm=$out/student.json
  captions=$out/chats/chats instructions=$captions chats=$captions tasks=$captions pairs=$world/pairs
  compose=(--tokenizer "$world/tokenizer")
fi
if [[ -z $teacher && -n $teacher_llm ]]; then
  for name in captions instructions; do
    [[ -n ${!name} ]] || die "--$name is missing, from which the teacher is made; see run.sh --help"
  done
  make_once "$out/teacher/start/config.json" compose --vision "$vision" --llm "$teacher_llm" --chat-template "$template" \
    --out "$out/teacher/start" ${compose[@]+"${compose[@]}"}
  train sft teacher/init --model "$out/teacher/start" --data "$captions"
  train sft teacher/teacher --model "$out/teacher/init" --data "$instructions"
  teacher=$out/teacher/teacher
fi
for name in teacher llm captions chats tasks pairs; do
  [[ -n ${!name} ]] || die "--$name is missing; see run.sh --help"
done

make_once "$out/student/config.json" compose --vision "$vision" --llm "$llm" --chat-template "$template" --out "$out/student" \
  ${compose[@]+"${compose[@]}"}
train sft init --model "$out/student" --data "$captions"
train mimic d2d --model "$out/init" --data "$chats" --teacher "$teacher"
# 4 experts, 2 per token, every second layer; the router as PyTorch initialises it, LLaVA-MoD's.
make_once "$out/sparse/config.json" upcycle "$out/d2d" --num-experts 4 --top-k 2 --layers alternate --router-init uniform --out "$out/sparse"
train mimic d2s --model "$out/sparse" --data "$tasks" --teacher "$teacher"
train preference preference --model "$out/d2s" --data "$pairs" --reference-model "$teacher"
echo "the sparse student is in $out/preference"
