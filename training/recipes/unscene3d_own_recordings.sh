#!/usr/bin/env bash
# UnScene3D on your own recordings: bags or scan folders in, a checkpoint for the robot out.
# Nothing has to be labelled. A second call goes on where the first was stopped.
#
#   training/recipes/unscene3d_own_recordings.sh OUTPUT RECORDING...
#
# SETTINGS changes the recipe: "small" (two processor cores, maps at 4 cm) unless it names another.
# A recording or two teach little; where there are few, start from the shipped checkpoint:
#   INITIAL=unscene_ros/checkpoints/unscene3d_rooms.safetensors training/recipes/...
# More recordings of a later day join those in OUTPUT. Learn from all of them in another run:
#   RUN=second INITIAL=OUTPUT/run/checkpoint.safetensors training/recipes/...
set -euo pipefail
if (($# < 2)); then
    sed -n '2,13s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
library=$(realpath -m "$1")
run=$library/${RUN:-run}
initial=()
if [[ -n ${INITIAL:-} ]]; then initial=(--initial "$(realpath -m "$INITIAL")"); fi
recordings=()
for recording in "${@:2}"; do recordings+=("$(realpath -m "$recording")"); done
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
workers=(--workers "${WORKERS:-0}")
read -ra settings <<< "${SETTINGS:---recipe small}"

failed=0
step() { # a command after which the others go on, even if some of its scans failed
    "$python" -m "$@" || { (($? == 1)) && failed=1; } || exit 2
}

step training.scans.recorded "${recordings[@]}" -o "$library" "${workers[@]}"
step training.unscene3d.pseudo_masks "$library" "${settings[@]}" "${workers[@]}"
step training.unscene3d.rounds "$library" "${settings[@]}" "${workers[@]}" "${initial[@]}" \
    -o "$run"
echo "look at it:  unscene replay ${recordings[0]} --segmenter $run/checkpoint.safetensors -o output/mine"
exit "$failed"
