#!/usr/bin/env bash
# From a folder of animated assets to data/models/small (128 x 128 pixels) and data/sample: clips, curation, the first
# small model with one more level in its VAE, five training runs, the export, the sample.
#
#   scripts/build/make_second_model.sh FOLDER_OF_ASSETS [FOLDER_OF_DATA]
#
# Every step goes on where it was interrupted. On a GPU one command does all of it: DEVICE=gpu scripts/build/...;
# without one, one process of one thread trains. Held out by source: no clip of three authors is trained on.
set -euo pipefail
assets=$(realpath "${1:?give a folder of animated assets}")
cd "$(dirname "$0")/../.."
data=${2:-.cache/assets}
export PATH="$PWD/.venv/bin:$PATH"
cpu=()
[ "${DEVICE:-cpu}" = gpu ] || { cpu=(cpu=true); export OMP_NUM_THREADS=1; }
manifest=()
[ ! -f "$assets/MANIFEST.tsv" ] || manifest=(manifest="$assets/MANIFEST.tsv")

fourdiffusion data render assets="$assets" "${manifest[@]}" output="$data/clips" engine=opengl width=128 height=128 \
    num_views=8 num_random_views=4 num_frames=16 stride=2
fourdiffusion data curate clips="$data/clips" output="$data/curated"
held_out='^(animalia|kenney|draconis)-'
grep -Ev "$held_out" "$data/curated/keep.txt" >"$data/train.txt"
grep -E "$held_out" "$data/curated/keep.txt" >"$data/test.txt"
for split in train test; do
    fourdiffusion data pack clips="$data/clips" ids="$data/$split.txt" output="$data/$split"
done

[ -f runs/small_start/model_index.json ] || python scripts/build/extend_model.py data/models/tiny runs/small_start
for stage in vae base motion base_more motion_more; do
    fourdiffusion train experiment="small_$stage" data.path="$data/train" validation_data="$data/test" \
        output="runs/small_$stage" "${cpu[@]}"
done
python scripts/build/export_small_model.py runs/small_motion_more/model data/models/small "$data/train" --steps 4

# The sample: an animal of a held-out author, turned by a random heading.
dog=$assets/kenney-quaternius-fbx/Dog.glb
if [ -f "$dog" ]; then
    echo "$dog" >"$data/sample.txt"
    fourdiffusion data render assets="$data/sample.txt" "${manifest[@]}" output="$data/sample" engine=opengl width=256 \
        height=256 num_views=8 num_frames=8 stride=2 animations=first random_offset=false random_heading=true
    python scripts/build/make_sample.py data/sample "$data/sample/Dog-Walking"
fi
