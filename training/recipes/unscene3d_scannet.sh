#!/usr/bin/env bash
# Tables 1 to 5 of UnScene3D (Rozenberszki et al., CVPR 2024) on ScanNet, for whoever has it.
# A second call goes on where the first was stopped; what tables share is made once.
#
#   training/recipes/unscene3d_scannet.sh SCANNET_ROOT CSC_WEIGHTS OUTPUT [STEP...]
#
# SCANNET_ROOT: scans/ with .sens, meshes and labels, the label map, and the official lists
# scannetv2_train.txt and scannetv2_val.txt. CSC_WEIGHTS: Contrastive Scene Contexts, pre-trained on
# ScanNet without labels (Res16UNet34C, 2 cm). DINO's weights are downloaded when they are needed.
# STEP: data, table1, table2, table3, table4, table5; default all of them. Tables are printed and
# written to OUTPUT/tables, once as the paper counts (compat: walls are objects too) and once without.
# Variables change it: GPUS (of this machine), WORKERS, IMPORT_OPTIONS (of training.scans.scannet),
# RECIPE ("paper"; "default" has what is known to be better) and SETTINGS, as in
#   GPUS=4 SETTINGS="seed=1" training/recipes/unscene3d_scannet.sh ...
set -efuo pipefail
source "$(dirname "$0")/steps.sh"
if (($# < 3)); then usage; fi
scannet=$(absolute "$1")
weights=$(absolute "$2")
library=$(absolute "$3")
tables=("${@:4}")
recipe=${RECIPE:-paper}
read -ra import_options <<< "${IMPORT_OPTIONS:-}"
dino=${IMAGE_FEATURES:-image_features.provider=dino image_features.model=facebook/dino-vits8}
# The import has left out 19 of 20 frames already.
common="geometry_checkpoint=csc.safetensors features.images.frame_step=1 ${SETTINGS:-}"
launch=()
if ((${GPUS:-1} > 1)); then
    launch=(torch.distributed.run --standalone --nproc-per-node "$GPUS" -m)
fi

settings_of() { # VARIANT -> its settings
    local method=${1%_*} modality=${1#*_}
    case $1 in
        baseline | projection) echo "loss.kind=$1" ;;
        cuts_* | freemask_*) echo "pseudo_masks.method=$method" \
            "pseudo_masks.$method.affinity.modality=$modality" ;;
    esac
    case $1 in *_2d | *_3d) echo "loss.drop_overlap=0.01" ;; esac # as for one modality alone
    case $1 in cuts_3d) echo "pseudo_masks.cuts.min_affinity=0.55" ;; esac
}

learn() { # VARIANT...: the masks of both splits, four rounds in OUTPUT/runs/VARIANT
    local variant split
    for variant in "$@"; do
        # shellcheck disable=SC2046,SC2086 # settings are separate words
        choose "$recipe" $common $(settings_of "$variant")
        for split in train val; do
            step training.unscene3d.pseudo_masks "$library" --split "$split" "${settings[@]}" \
                "${workers[@]}"
        done
        step "${launch[@]}" training.unscene3d.rounds "$library" --split train "${settings[@]}" \
            "${workers[@]}" -o "$library/runs/$variant"
    done
}

masks_row() { # VARIANT -> the row of its pseudo masks
    echo "$1, pseudo masks=pseudo_masks:$recipe $common" $(settings_of "$1")
}

rounds_row() { # VARIANT -> the rows of its rounds
    echo "$1=rounds:$library/runs/$1"
}

evaluate() { # TABLE ROW...: on the validation scans
    local protocol
    for protocol in compat clean; do
        step training.probes.average_precision "$library" --split val --protocol "$protocol" \
            -o "$library/tables/$1_$protocol.json" "${@:2}"
    done
}

data() { # scans with their frames, turned upright, and the network of the 3D features
    local split
    for split in train val; do
        step training.scans.scannet "$scannet" -o "$library" --split "$split" --unscene3d \
            "${import_options[@]}" "${workers[@]}"
    done
    if [[ ! -e $library/csc.safetensors ]]; then
        step unscene_ros.cli import-weights "$weights" -o "$library/csc.safetensors" \
            --network SparseUNet --set stem_kernel_size=3 --allow final
    fi
}

table1() { # against methods that do not learn, or from pictures alone
    learn cuts_both
    evaluate table1 "HDBSCAN=hdbscan" "Nunes=nunes $dino" "Felzenszwalb=felzenszwalb" \
        "CutLER projection=projected_masks $dino" "$(rounds_row cuts_both)"
}

table2() { # modalities, and FreeMask; AP after round 1 and after the last
    local variant variants=(freemask_3d cuts_3d freemask_2d cuts_2d freemask_both cuts_both) rows=()
    learn "${variants[@]}"
    for variant in "${variants[@]}"; do rows+=("$(rounds_row "$variant")"); done
    evaluate table2 "${rows[@]}"
}

table3() { # losses; the last one is DropLoss
    learn baseline projection cuts_both
    evaluate table3 "$(masks_row cuts_both)" "$(rounds_row baseline)" "$(rounds_row projection)" \
        "$(rounds_row cuts_both)"
}

table4() { # rounds
    learn cuts_3d cuts_both
    evaluate table4 "$(masks_row cuts_3d)" "$(rounds_row cuts_3d)" "$(masks_row cuts_both)" \
        "$(rounds_row cuts_both)"
}

table5() { # as pre-training: parts of the labelled scans, from scratch and after the last round
    learn cuts_both
    # shellcheck disable=SC2086 # settings are separate words
    choose "$recipe" $common
    local run=$library/runs/few_labels start share rows=()
    local shares=(0.01 0.05 0.1 0.2 0.5 1.0)
    local options=(--split train --shares "${shares[@]}" "${settings[@]}" -o "$run")
    step "${launch[@]}" training.probes.few_labels "$library" "${options[@]}"
    step "${launch[@]}" training.probes.few_labels "$library" "${options[@]}" \
        --initial "$library/runs/cuts_both/checkpoint.safetensors"
    for start in scratch finetuned; do
        for share in "${shares[@]}"; do
            rows+=("$start $share=checkpoint:$run/${start}_$share/checkpoint.safetensors")
        done
    done
    evaluate table5 "${rows[@]}"
}

if ((${#tables[@]} == 0)); then tables=(data table{1..5}); fi
for table in "${tables[@]}"; do
    case $table in
        data | table[1-5]) ;;
        *) echo "error: expected data or table1 to table5, got $table" >&2; exit 2 ;;
    esac
done
for table in "${tables[@]}"; do "$table"; done
exit "$failed"
