#!/usr/bin/env bash
# DA-DPO (arXiv:2601.00623), from a public preference set to a table of before and after.
#
#   scripts/da_dpo/run.sh llava-1.5-7b --set bpo --files bpo_instruct.json --image-root images --bench bench --gpus 8
#   scripts/da_dpo/run.sh llava-1.5-7b --smoke      # every stage in a minute or two on a CPU, a tiny random model of that family
#   scripts/da_dpo/run.sh llava-1.5-7b ... --print  # the commands, without running them
#
# Recipes: llava-1.5-7b, llava-1.5-13b (the paper's values); qwen2.5-vl-3b, qwen3-vl-2b, smolvlm2-2.2b (ours). Each is a folder of YAML files.
#
#   --set NAME --files PATH...   a set of docs/data.md and its files (for pairs in TRL's columns: trl)
#   --image-root DIR             where image paths in them start; leave it out where images are embedded
#   --bench DIR                  pope/ (coco_pope_*.json), chair/ (synonyms.txt, *objects*.json, chair.jsonl), val2014/ (COCO's images),
#                                amber/ (AMBER's data with images/); CHAIR and AMBER need NLTK's data (docs/evaluation.md)
#   --gpus N                     1, 2, 4 or 8 of one machine (1); 32 pairs per step whatever N is
#   --out DIR                    runs/da_dpo/RECIPE
#
# Stages: convert_pairs -> score-difficulty -> train preference -> evaluate pope, chair, amber (before and after) -> report eval.
# After a stop give the same command again: finished stages are passed over, scoring and training resume where they stopped.
#
# Cost to expect: see README.md here, estimates from FLOPs. Measured result: none yet; no recipe has been run on a GPU.
set -euo pipefail

die() { echo "run.sh: $*" >&2; exit 2; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
home=scripts/da_dpo
known=$(cd "$root/$home" && echo */train.yaml | sed 's|/train.yaml||g')
[[ $# -gt 0 ]] || die "name a recipe: $known"
recipe=$1
if [[ $recipe != -h && $recipe != --help ]]; then
  [[ -f "$root/$home/$recipe/train.yaml" ]] || die "no recipe $recipe; known: $known"
  shift
fi

set_name=bpo files=() image_root="" bench="" gpus=1 out="" smoke=false print=false
while [[ $# -gt 0 ]]; do
  case $1 in
    --set | --files | --image-root | --bench | --gpus | --out) [[ $# -ge 2 && $2 != --* ]] || die "$1 needs a value" ;;
  esac
  case $1 in
    --set) set_name=$2; shift 2 ;;
    --files) shift; while [[ $# -gt 0 && $1 != --* ]]; do files+=("$(realpath -m "$1")"); shift; done ;;
    --image-root) image_root=$(realpath -m "$2"); shift 2 ;;
    --bench) bench=$(realpath -m "$2"); shift 2 ;;
    --gpus) gpus=$2; shift 2 ;;
    --out) out=$(realpath -m "$2"); shift 2 ;;
    --smoke) smoke=true; shift ;;
    --print) print=true; shift ;;
    -h | --help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "$root/$home/run.sh"; exit 0 ;;
    *) die "unknown option $1; see run.sh RECIPE --help" ;;
  esac
done
cd "$root"
python=${PYTHON:-python}
if [[ -z $out ]]; then
  out=runs/da_dpo/$recipe
  if $smoke; then out=runs/da_dpo/smoke/$recipe; fi
fi

# stage DONE COMMAND...: run the command unless it has left DONE; '' always runs it.
stage() {
  local done=$1; shift
  if $print; then printf '%q ' "$@"; echo; return; fi
  if [[ -n $done && -e $done ]]; then echo "== $done is there"; return; fi
  echo "== $*"
  "$@"
}

value() { sed -n "s/^$1: *\([^ #]*\).*/\1/p" "$home/$recipe/train.yaml"; }

base=$(value model)
scoring=() training=() answering=() launch=("$python")
if $smoke; then
  stage "$out/inputs/bench/amber/query_all.json" "$python" -m scripts.da_dpo.smoke "$recipe" --out "$out/inputs"
  base=$out/inputs/mllm bench=$out/inputs/bench set_name=trl files=("$out/inputs/world/pairs")
  # The recipe's options but for the models and these sizes.
  scoring=(--mllm "$base" --clip "$out/inputs/clip" --batch-size 8)
  training=(--model "$base" --max-steps 3 --gradient-accumulation-steps 1 --logging-steps 1 --num-workers 0 --trainer '{use_cpu: true}')
  answering=(--max-new-tokens 8)
else
  [[ ${#files[@]} -gt 0 ]] || die "--files is missing: the preference set's own files"
  [[ -n $bench ]] || die "--bench is missing: the folder of pope/, chair/, amber/ and val2014/"
  case $gpus in
    1) launch=(accelerate launch --config_file scripts/accelerate/one_gpu.yaml) ;;
    2 | 4 | 8) launch=(accelerate launch --config_file scripts/accelerate/ddp_8gpu.yaml --num_processes "$gpus") ;;
    *) die "--gpus is $gpus; expected 1, 2, 4 or 8, so that a step is 32 pairs" ;;
  esac
  training=(--gradient-accumulation-steps $(($(value gradient_accumulation_steps) / gpus)))
fi
if [[ -n $image_root ]]; then scoring+=(--image-root "$image_root"); training+=(--image-root "$image_root"); fi

# 1. The set's own files to pairs. BPO's and DA-DPO's trainers leave out records with a response over 350 words.
stage "$out/pairs" "$python" data_tools/convert_pairs.py "$set_name" "${files[@]}" ${image_root:+--image-root "$image_root"} \
  --max-words 350 --out "$out/pairs"

# 2. Both gaps of every pair, the vote, and the reference's log-probabilities.
stage "$out/difficulty/scored.parquet" "${launch[@]}" -m mmalign score-difficulty "$out/pairs/pairs" \
  --config "$home/$recipe/score.yaml" "${scoring[@]}" --out "$out/difficulty"

# 3. DA-DPO.
stage "$out/model/train_log.json" "${launch[@]}" -m mmalign train preference --config "$home/$recipe/train.yaml" "${training[@]}" \
  --data "$out/difficulty/scored.parquet" --out "$out/model"

# 4. Before and after.
for name in before after; do
  model=$base
  if [[ $name == after ]]; then model=$out/model; fi
  for benchmark in pope chair amber; do
    images=$bench/val2014
    if [[ $benchmark == amber ]]; then images=$bench/amber/images; fi
    stage "$out/results/$name/$benchmark.json" "$python" -m mmalign evaluate "$benchmark" --config "$home/evaluate/$benchmark.yaml" \
      --data "$bench/$benchmark" --images "$images" --model "$model" --out "$out/results/$name" "${answering[@]}"
  done
done

# 5. Side by side.
stage "" "$python" -m mmalign report eval "$out/results/before" "$out/results/after" --names before "$recipe" \
  --out "$out/report"
