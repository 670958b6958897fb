"""What both nodes are: led by the lifecycle of ROS 2, with parameters that change while they run.

    unconfigured -- configure --> inactive -- activate --> active, and back again

A subclass says what it makes in `configure` and `activate`, and with each thing how it is undone.
"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from rclpy.timer import Timer

from unscene_ros.nodes.parameters import changed, declare
from unscene_ros.scene import InputError


class ManagedNode(LifecycleNode):
    """A node whose `configure(undo)` and `activate(undo)` are written by its subclass.

    Each puts on the stack `undo` how to take back what it made; that runs, the last first, when
    the node is deactivated or cleaned up, when a step fails half way, and when the node ends.
    A config with the field `autostart` set takes the node to active when it is made.
    """

    # Parameters, or sections of them, that are read only then; all others count at once.
    READ_WHEN_CONFIGURED: ClassVar[Sequence[str]] = ()
    READ_WHEN_ACTIVATED: ClassVar[Sequence[str]] = ()

    def __init__(self, name: str, config_class: type) -> None:
        """Raises InputError for a wrong parameter."""
        super().__init__(name)
        self._configured = ExitStack()
        self._activated = ExitStack()
        self._state = "unconfigured"
        self._failure: Exception | None = None
        self.config: Any = declare(self, config_class, read_only=False)
        self.add_on_set_parameters_callback(self._on_parameters)

    def autostart(self) -> None:
        """Configures and activates the node if its config says so; raises what went wrong."""
        for transition in (self.trigger_configure, self.trigger_activate):
            if self.config.autostart and transition() != TransitionCallbackReturn.SUCCESS:
                self.destroy_node()
                raise self._failure or RuntimeError(f"{self.get_name()}: cannot start")

    @property
    def state(self) -> str:
        """unconfigured, inactive or active."""
        return self._state

    def configure(self, undo: ExitStack) -> None:
        """Makes what outlasts a pause: publishers, services, what the node knows."""
        raise NotImplementedError

    def activate(self, undo: ExitStack) -> None:
        """Starts the work: loads weights, subscribes, begins threads and timers."""
        raise NotImplementedError

    def apply(self, config: Any) -> None:
        """Called when parameters have changed, with the config that holds from now on."""

    def on_configure(self, _: LifecycleState) -> TransitionCallbackReturn:
        """Called by ROS, as the following are."""
        return self._enter("inactive", self.configure, self._configured)

    def on_activate(self, _: LifecycleState) -> TransitionCallbackReturn:
        return self._enter("active", self.activate, self._activated)

    def on_deactivate(self, _: LifecycleState) -> TransitionCallbackReturn:
        self._activated.close()
        self._state = "inactive"
        return TransitionCallbackReturn.SUCCESS

    def on_cleanup(self, _: LifecycleState) -> TransitionCallbackReturn:
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, _: LifecycleState) -> TransitionCallbackReturn:
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, _: LifecycleState) -> TransitionCallbackReturn:
        """After a fault in a step: all is taken back, and the node can be configured again."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def destroy_node(self) -> None:
        """Ends threads first, as they publish."""
        self._release()
        super().destroy_node()

    def _enter(
        self, state: str, step: Callable[[ExitStack], None], undo: ExitStack
    ) -> TransitionCallbackReturn:
        try:
            step(undo)
        except Exception as error:
            undo.close()
            traceback.clear_frames(error.__traceback__)  # they may hold a whole network
            self._failure = error
            if isinstance(error, InputError):
                self.get_logger().error(f"stays {self._state}: {error}")
                return TransitionCallbackReturn.FAILURE
            self.get_logger().error(f"not {state}:\n{traceback.format_exc()}")
            return TransitionCallbackReturn.ERROR
        self._state = state
        return TransitionCallbackReturn.SUCCESS

    def _release(self) -> None:
        self._activated.close()
        self._configured.close()
        self._state = "unconfigured"

    def _on_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        """Takes all of them or none, with the reason."""
        fields = {field.name for field in dataclasses.fields(self.config)}
        ours = [p for p in parameters if p.name.split(".")[0] in fields]  # not those of ROS itself
        try:
            config = changed(self.config, ours)
            for parameter in ours:
                self._check_may_change(parameter.name)
            self.apply(config)
        except InputError as error:
            return SetParametersResult(successful=False, reason=str(error))
        self.config = config
        return SetParametersResult(successful=True)

    def _check_may_change(self, name: str) -> None:
        for rules, states, remedy in (
            (self.READ_WHEN_CONFIGURED, ("inactive", "active"), "cleanup"),
            (self.READ_WHEN_ACTIVATED, ("active",), "deactivate"),
        ):
            fixed = any(name == rule or name.startswith(f"{rule}.") for rule in rules)
            if fixed and self._state in states:
                raise InputError(
                    f"{name}: cannot change while the node is {self._state}: "
                    f"ros2 lifecycle set {self.get_fully_qualified_name()} {remedy}"
                )

    def publish_on(self, undo: ExitStack, kind: type, topic: str, profile: QoSProfile) -> Any:
        """A publisher."""
        publisher: Any = self.create_publisher(kind, topic, profile)
        undo.callback(self.destroy_publisher, publisher)
        return publisher

    def subscribe(
        self, undo: ExitStack, kind: type, topic: str, take: Callable, profile: QoSProfile
    ) -> None:
        """A subscription."""
        undo.callback(
            self.destroy_subscription, self.create_subscription(kind, topic, take, profile)
        )

    def repeat(self, undo: ExitStack, period_s: float, work: Callable[[], None]) -> Timer:
        """A timer of real time: it goes on when simulated time stands still."""
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        timer = self.create_timer(period_s, work, clock=steady)
        undo.callback(self.destroy_timer, timer)
        return timer
