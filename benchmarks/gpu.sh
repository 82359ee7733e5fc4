#!/bin/sh
# Everything that is measured on a GPU, in at most 25 minutes:  sh benchmarks/gpu.sh FOLDER [DATA LLM]
# FOLDER gets the records; a second call goes on where the first was stopped. With DATA (a folder with gsm8k/*.jsonl) and LLM (SmolLM2-135M's
# folder or name) the training on GSM8K is timed as well. Copy cost/* to benchmarks/cost/records/NAME, and gsm8k-gpu.jsonl to benchmarks/end_to_end.
set -eu
folder=$1 data=${2:-} llm=${3:-}
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$folder/cost"
measure() {
    python3 -m benchmarks.cost.measure --device cuda --any-load --since 2000 --compile-seconds 90 --output "$folder/cost" "$@"
}
measure --only smollm2 qwen3 growth --group methods
if [ -n "$data" ]; then
    python3 -m benchmarks.end_to_end run gsm8k-gpu --any-load --minutes 8 --data "$data" ${llm:+--llm "$llm"} --folder "$folder"
fi
measure --only smollm2 qwen3 --group peers --minutes 4
