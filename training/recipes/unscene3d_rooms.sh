#!/usr/bin/env bash
# UnScene3D on procedural rooms, without a download: it made the checkpoint that the package ships.
# No label is read before the last command. A second call goes on where the first was stopped.
#
#   training/recipes/unscene3d_rooms.sh [OUTPUT]
#
# Variables change it: ROOMS and HELD_OUT (seeds), ROOM_OPTIONS, WORKERS, RECIPE and SETTINGS, as in
#   RECIPE=default SETTINGS="first_round.steps=20000 seed=1" training/recipes/unscene3d_rooms.sh
set -efuo pipefail
source "$(dirname "$0")/steps.sh"
library=$(if (($#)); then absolute "$1"; else echo output/unscene3d_rooms; fi)
read -ra rooms <<< "${ROOMS:-0-119}"
read -ra held_out <<< "${HELD_OUT:-9000-9029}"
read -ra room_options <<< "${ROOM_OPTIONS:-}"
# shellcheck disable=SC2086 # settings are separate words
choose "${RECIPE:-small}" ${SETTINGS:-}

# Scans: frames as a noisy RGB-D camera sees them, fused as the robot does.
step training.scans.rooms "${rooms[@]}" -o "$library" --split train "${room_options[@]}"
step training.scans.rooms "${held_out[@]}" -o "$library" --split held_out "${room_options[@]}"
step training.scans.fuse "$library" "${workers[@]}"

# Masks without training, then rounds of training and of adding masks.
step training.unscene3d.pseudo_masks "$library" --split train "${settings[@]}" "${workers[@]}"
step training.unscene3d.rounds "$library" --split train "${settings[@]}" "${workers[@]}" \
    -o "$library/run"

# What it is worth on rooms that were never looked at.
step training.probes.average_precision "$library" --split held_out -o "$library/held_out.json" \
    "training_free=training-free" "rounds=rounds:$library/run" \
    "default=consensus:$library/run/checkpoint.safetensors"
exit "$failed"
