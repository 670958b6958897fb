#!/usr/bin/env bash
# UnScene3D on procedural rooms, without a download: it made the checkpoint that the package ships.
# No label is read before the last command. A second call goes on where the first was stopped.
#
#   training/recipes/unscene3d_rooms.sh [OUTPUT]
#
# Variables change it: ROOMS and HELD_OUT (seeds), WORKERS, ROOM_OPTIONS and SETTINGS, for example
#   SETTINGS="--recipe default --set first_round.steps=20000" training/recipes/unscene3d_rooms.sh
set -euo pipefail
library=${1:+$(realpath -m "$1")}
cd "$(dirname "$0")/../.."
library=${library:-output/unscene3d_rooms}
python=${PYTHON:-.venv/bin/python}
workers=(--workers "${WORKERS:-0}")
read -ra rooms <<< "${ROOMS:-0-119}"
read -ra held_out <<< "${HELD_OUT:-9000-9029}"
read -ra room_options <<< "${ROOM_OPTIONS:-}"
read -ra settings <<< "${SETTINGS:---recipe small}"

failed=0
step() { # a command after which the others go on, even if some of its scans failed
    "$python" -m "$@" || { (($? == 1)) && failed=1; } || exit 2
}

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
    "training_free=training-free" "rounds=rounds:$library/run"
exit "$failed"
