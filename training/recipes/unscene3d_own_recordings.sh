#!/usr/bin/env bash
# UnScene3D on your own recordings: bags or scan folders in, a checkpoint for the robot out.
# Nothing has to be labelled. A second call goes on where the first was stopped.
#
#   training/recipes/unscene3d_own_recordings.sh OUTPUT RECORDING...
#
# RECIPE is "small", for two processor cores and maps at 4 cm, unless set; SETTINGS change it:
#   SETTINGS="first_round.steps=4000 rounds=2" training/recipes/unscene3d_own_recordings.sh ...
# A recording or two teach little; where there are few, start from the shipped checkpoint:
#   INITIAL=unscene_ros/checkpoints/unscene3d_rooms.safetensors training/recipes/...
# Recordings of a later day join those in OUTPUT. Another run learns from all of them:
#   RUN=second INITIAL=OUTPUT/run/checkpoint.safetensors training/recipes/...
set -efuo pipefail
source "$(dirname "$0")/steps.sh"
if (($# < 2)); then usage; fi
library=$(absolute "$1")
run=$library/${RUN:-run}
recordings=()
for recording in "${@:2}"; do recordings+=("$(absolute "$recording")"); done
initial=()
if [[ -n ${INITIAL:-} ]]; then initial=(--initial "$(absolute "$INITIAL")"); fi
# shellcheck disable=SC2086 # settings are separate words
choose "${RECIPE:-small}" ${SETTINGS:-}

step training.scans.recorded "${recordings[@]}" -o "$library" "${workers[@]}"
step training.unscene3d.pseudo_masks "$library" "${settings[@]}" "${workers[@]}"
step training.unscene3d.rounds "$library" "${settings[@]}" "${workers[@]}" "${initial[@]}" -o "$run"
if [[ -e $run/checkpoint.safetensors ]]; then
    echo "look at it: unscene replay ${recordings[0]} -o output/mine" \
        "--segmenter consensus:$run/checkpoint.safetensors"
fi
exit "$failed"
