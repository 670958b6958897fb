"""For machines without ROS 2, `pip install .`; a ROS workspace builds with colcon (package.xml)."""

import re
from pathlib import Path

from setuptools import Extension, find_packages, setup

setup(
    name="unscene_ros",
    version=re.search(r'__version__ = "(.+)"', Path("unscene_ros/__init__.py").read_text())[1],
    description="Label-free 3D instance mapping: RGB-D frames in, objects out",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    package_dir={"": "."},  # an editable install is then one path, which the messages can extend
    packages=find_packages(include=["unscene_ros", "unscene_ros.*"]),
    package_data={"unscene_ros": ["checkpoints/*.safetensors", "report.html"]},
    ext_modules=[
        Extension(  # a plain C library, loaded with ctypes
            "unscene_ros.models.backends.native_kernel",
            ["unscene_ros/models/backends/native_kernel.c"],
            depends=["unscene_ros/models/backends/native_tiles.h"],
            extra_compile_args=["-O3", "-std=gnu11", "-fopenmp"],
            extra_link_args=["-fopenmp"],
            optional=True,  # without a compiler the networks run in plain PyTorch
        )
    ],
    # The versions that were tested are pinned in requirements.txt.
    install_requires=[
        "numpy",
        "scipy",
        "numba",
        "opencv-python-headless",
        "open3d-cpu; platform_machine == 'x86_64'",
        "open3d; platform_machine != 'x86_64'",
        "rosbags",
        "rich",
        "psutil",
        "torch",
        "safetensors",
        "PyYAML",
    ],
    extras_require={
        "learning": ["transformers", "scikit-learn", "tensorboard"],
        "cluster": ["ray"],
        "test": [
            "pytest",
            "pytest-timeout",
            "hypothesis",
            "selenium",
            "ruff",
            "mypy",
            "types-PyYAML",
            "triton; platform_machine == 'x86_64'",  # its interpreter
        ],
    },
    entry_points={
        "console_scripts": [
            "unscene = unscene_ros.cli:main",
            "fusion_node = unscene_ros.nodes.fusion_node:main",
            "segmentation_node = unscene_ros.nodes.segmentation_node:main",
            "player_node = unscene_ros.nodes.player_node:main",
        ]
    },
)
