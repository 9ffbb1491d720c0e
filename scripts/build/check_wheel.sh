#!/usr/bin/env bash
# Build wheel and sdist, install the wheel into an empty environment outside the repository, run the sample there.
#   scripts/build/check_wheel.sh FOLDER [PYTHON] [SETTING...]
# FOLDER must not exist. PYTHON: default python3.11. Further words are settings of the run: max_steps=40 for a short check.
# Ends with the sizes, and with an error where a step fails. Needs a package index.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
[ $# -ge 1 ] || { echo "usage: $0 FOLDER [PYTHON] [SETTING...]" >&2; exit 2; }
[ ! -e "$1" ] || { echo "error: $1 is there already: name a new folder" >&2; exit 2; }
python=${2:-python3.11}
settings=("${@:3}")
mkdir -p "$1"
folder=$(cd "$1" && pwd)

# from a copy of what git has: files that lie about must not get into the wheel
git -C "$repository" archive --prefix=source/ HEAD | tar -x -C "$folder"
"$python" -m venv "$folder/build-env"
"$folder/build-env/bin/pip" install --quiet build
"$folder/build-env/bin/python" -m build --outdir "$folder/dist" "$folder/source"
wheel=$(ls "$folder"/dist/*.whl)
"$folder/build-env/bin/python" -m zipfile -l "$wheel" > "$folder/wheel_files.txt"
if grep -E '__pycache__|\.pyc|/tests?/' "$folder/wheel_files.txt"; then
  echo "error: the wheel holds files that do not belong into it" >&2
  exit 1
fi

"$python" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --constraint "$repository/constraints.txt" "$wheel[matting]"
"$folder/env/bin/pip" check
rm -rf "$folder/source"

mkdir "$folder/work"
cd "$folder/work"
unset PYTHONPATH
"$folder/env/bin/fourdiffusion" doctor
video=$("$folder/env/bin/python" -c 'from fourdiffusion.cli.schema import shipped; print(shipped("data/sample/input.mp4"))')
cp "$video" bird.mp4
"$folder/env/bin/fourdiffusion" bird.mp4 crop=frame "${settings[@]}"
for name in turntable.mp4 scene.glb scene.html; do
  [ -s "runs/bird/$name" ] || { echo "error: runs/bird/$name is missing" >&2; exit 1; }
done
ls -l "$folder"/dist runs/bird/turntable.mp4 runs/bird/scene.glb runs/bird/scene.html
du -sh "$folder/env"
