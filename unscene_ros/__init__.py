"""Label-free 3D instance mapping for ROS 2; start reading at `unscene_ros/pipeline.py`."""

from pkgutil import extend_path

__version__ = "0.1.0"
# Of commands, nodes, launch file and demo. It is here because the Python of `ros2 launch` need not
# have what `segmentation.py` imports.
DEFAULT_SEGMENTER = "default"
# The message generator installs a package of the same name elsewhere: both halves are one package.
__path__ = extend_path(__path__, __name__)
