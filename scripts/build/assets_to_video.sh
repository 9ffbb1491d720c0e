#!/usr/bin/env bash
# From animated assets to a generated video: render, curate, pack, train for a few steps, generate.
#
#   scripts/build/assets_to_video.sh FOLDER_OF_GLB [OUTPUT [NUMBER_OF_ASSETS]]
#
# It shows that every step takes what the one before has made; a few steps of training change the small model little.
# Every step goes on where it was interrupted.
set -euo pipefail
assets=$(realpath "${1:?give a folder of animated GLB files}")
cd "$(dirname "$0")/../.."
output=${2:-runs/assets_to_video}
count=${3:-12}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}" PATH="$PWD/.venv/bin:$PATH"
mkdir -p "$output"

# Evenly spaced in the sorted list, so that all kinds are among them.
find "$assets" -name '*.glb' | sort | awk -v n="$count" '{ paths[NR] = $0 }
    END { for (k = 0; k < n && k < NR; k++) print paths[1 + int(k * NR / (n < NR ? n : NR))] }' >"$output/assets.txt"
manifest=()
[ ! -f "$assets/MANIFEST.tsv" ] || manifest=(manifest="$assets/MANIFEST.tsv")

fourdiffusion data render assets="$output/assets.txt" "${manifest[@]}" output="$output/clips" engine=opengl \
    width=128 height=128 num_views=8 num_random_views=4 num_frames=16 animations=longest part=whole
fourdiffusion data curate clips="$output/clips" output="$output/curated"
fourdiffusion data pack clips="$output/clips" manifest="$output/curated/manifest.parquet" output="$output/shards" clips_per_shard=4
fourdiffusion train stage=motion model.path=data/models/tiny data.path="$output/shards" data.num_frames=4 \
    data.frame_stride=4 output="$output/train" max_steps=3 batch_size=2 micro_batch_size=1 cpu=true trackers=[] \
    validation_every=0 checkpoint_every=3
kept=$(head -n 1 "$output/curated/keep.txt")
fourdiffusion generate video="$output/clips/$kept/rgba/v00_f*.png" output="$output/generate" \
    model.path="$output/train/model" num_frames=4 model.num_inference_steps=10
echo "made: $output/generate/contact_sheet.png"
