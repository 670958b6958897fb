"""The demo: a recording through the live nodes, `python -m unscene_ros.nodes.demo`."""
