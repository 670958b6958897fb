"""UnScene3D (Rozenberszki et al., CVPR 2024): instances learned from unlabelled recordings."""
