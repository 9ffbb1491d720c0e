#!/usr/bin/env bash
# Fill a folder that can be pushed as a Gradio space on Hugging Face.
#   scripts/build/make_space.sh FOLDER SOURCE
# FOLDER must not exist. SOURCE: where pip finds the project, git+ADDRESS[@COMMIT] of your copy, or file:///... to try it.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
[ $# -eq 2 ] || { echo "usage: $0 FOLDER SOURCE" >&2; exit 2; }
[ ! -e "$1" ] || { echo "error: $1 is there already: name a new folder" >&2; exit 2; }
case $2 in
  git+?* | file:///?*) ;;
  *) echo "error: SOURCE=$2 is no git+ADDRESS and no file:///PATH: give the address of your copy of the repository" >&2; exit 2 ;;
esac

mkdir -p "$1"
space=$repository/integrations/huggingface_space
cp "$space/README.md" "$space/app.py" "$1"
requirements=$(cat "$space/requirements.txt")
printf '%s\n' "${requirements//\$\{FOURDIFFUSION_SOURCE\}/$2}" > "$1/requirements.txt"
echo "written: $1"
