#!/usr/bin/env bash
# From nothing to data/models/tiny and data/sample: the data, the training runs, the export.
#
#   scripts/build/make_small_model.sh [FOLDER OF DATA]
#
# Every step goes on where it was interrupted. Two processes of one thread each use two cores best; on a GPU, replace
# `train` by `fourdiffusion train` and leave out cpu=true. dev/LOG.md says what it took.
set -euo pipefail
cd "$(dirname "$0")/../.."
data=${1:-.cache/synth}
export OMP_NUM_THREADS=1 PATH="$PWD/.venv/bin:$PATH"

clips=$data/train
train() { torchrun --nproc_per_node 2 -m fourdiffusion train data.path="$clips" validation_data="$data/test" cpu=true "$@"; }

fourdiffusion data synth output="$data/train" num_clips=1500 num_workers=2
fourdiffusion data synth output="$data/test" split=test num_clips=60 rig=orbit num_workers=2

train experiment=tiny_vae output=runs/tiny_vae
train experiment=tiny_vae_crops output=runs/tiny_vae_crops
train experiment=tiny_clip output=runs/tiny_clip
train experiment=tiny_base output=runs/tiny_base
train experiment=tiny_base_more output=runs/tiny_base_more
train experiment=tiny_motion output=runs/tiny_motion

# What curation is worth: the same last stage on the same clips and as many faulty ones.
fourdiffusion data synth output="$data/whole" num_clips=1500 num_faulty=1500 num_workers=2
clips=$data/whole train experiment=tiny_motion output=runs/tiny_motion_whole

python scripts/build/export_small_model.py runs/tiny_motion/model data/models/tiny
python scripts/build/make_creature.py tests/data/creature
