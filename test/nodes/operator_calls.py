"""An operator for tests: calls services, reads /diagnostics and sets parameters."""

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger
from unscene_ros.srv import NamedFile

from unscene_ros.nodes.diagnostics import diagnostics_from_msg


class Caller(Node):
    """Knows of a node only what comes over ROS."""

    def __init__(self, ros, of):
        super().__init__("caller")
        self._ros, self._of = ros, of
        self._known = {}
        self.level, self.message, self.values = b"", "", {}
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def call(self, kind, name, /, **fields):
        """The answer of `/<node>/<name>`."""
        client = self._known.get(name)
        if client is None:
            client = self._known[name] = self.create_client(kind, f"/{self._of}/{name}")
        self._ros.spin_until(client.service_is_ready)
        future = client.call_async(kind.Request(**fields))
        self._ros.spin_until(future.done)
        return future.result()

    def trigger(self, name):
        return self.call(Trigger, name)

    def file(self, service, name):
        return self.call(NamedFile, service, name=str(name))

    def _on_diagnostics(self, message):
        for status in message.status:
            if status.name == self._of:
                self.level, self.message = status.level, status.message
        self.values = diagnostics_from_msg(message).get(self._of, self.values)


def set_parameter(node, name, value):
    """The result of setting one parameter of a node of this process."""
    return node.set_parameters([Parameter(name, value=value)])[0]
