"""ROS 2 adapters around the stages: convert, call, convert, publish. Nothing imports them."""
