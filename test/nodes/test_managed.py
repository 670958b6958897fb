"""The lifecycle and the parameters that change while a node runs."""

from dataclasses import dataclass, field
from functools import partial

import pytest
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter

from unscene_ros.nodes.managed import ManagedNode
from unscene_ros.scene import InputError
from unscene_ros.settings import check_ranges, within


@dataclass(frozen=True, slots=True)
class LampConfig:
    """A lamp."""

    color: str = "white"
    watts: float = within(5.0, 0, 60)

    def __post_init__(self):
        check_ranges(self, "lamp")


@dataclass(frozen=True, slots=True)
class RoomConfig:
    """A room."""

    autostart: bool = True
    door: str = "oak"
    window: str = "open"
    lamp: LampConfig = field(default_factory=LampConfig)


class Room(ManagedNode):
    """Writes down what it is told to do."""

    READ_WHEN_CONFIGURED = ("door",)
    READ_WHEN_ACTIVATED = ("window",)

    def __init__(self, failure=None, fails_at=""):
        self.story = []
        self._fault, self._fails_at = failure, fails_at
        super().__init__("room", RoomConfig)
        self.autostart()

    def configure(self, undo):
        self._enter_step(undo, "configured")

    def activate(self, undo):
        self._enter_step(undo, "activated")

    def apply(self, config):
        self.story.append(config.lamp)

    def _enter_step(self, undo, step):
        for part in ("first", "second"):
            self.story.append(f"{step} {part}")
            undo.callback(self.story.append, f"not {step} {part}")
        if step == self._fails_at:
            raise self._fault


@pytest.fixture
def make(ros):
    def make(*parameters, **options):
        ros.start(*parameters)
        return ros.add(Room(**options))

    return make


ACTIVE = ["configured first", "configured second", "activated first", "activated second"]
UNDONE = [f"not {each}" for each in reversed(ACTIVE)]


def test_autostart_makes_it_active_and_destroying_undoes_all_last_first(make):
    room = make()
    assert (room.state, room.story) == ("active", ACTIVE)
    room.destroy_node()
    assert room.story == ACTIVE + UNDONE


def test_without_autostart_a_manager_leads_it_through_its_states(ros, make):
    room = make("autostart:=false")
    assert room.state == "unconfigured"
    manager = ros.add(Node("manager"))
    change = manager.create_client(ChangeState, "/room/change_state")
    look = manager.create_client(GetState, "/room/get_state")

    def call(client, request):
        ros.spin_until(client.service_is_ready)
        future = client.call_async(request)
        ros.spin_until(future.done)
        return future.result()

    states = []
    for transition in (
        Transition.TRANSITION_CONFIGURE,
        Transition.TRANSITION_ACTIVATE,
        Transition.TRANSITION_DEACTIVATE,
        Transition.TRANSITION_CLEANUP,
        Transition.TRANSITION_CONFIGURE,
        Transition.TRANSITION_INACTIVE_SHUTDOWN,
    ):
        request = ChangeState.Request(transition=Transition(id=transition))
        assert call(change, request).success
        states.append(call(look, GetState.Request()).current_state.id)
    inactive, active, unconfigured = (
        State.PRIMARY_STATE_INACTIVE,
        State.PRIMARY_STATE_ACTIVE,
        State.PRIMARY_STATE_UNCONFIGURED,
    )
    finalized = State.PRIMARY_STATE_FINALIZED
    assert states == [inactive, active, inactive, unconfigured, inactive, finalized]
    assert room.story == ACTIVE + UNDONE + ACTIVE[:2] + UNDONE[2:]


@pytest.mark.parametrize("step", ["configured", "activated"])
def test_a_mistake_at_autostart_is_raised_and_leaves_nothing_behind(make, ros, step):
    with pytest.raises(InputError, match="no bulb"):
        make(failure=InputError("lamp: no bulb"), fails_at=step)


def test_a_mistake_leaves_the_state_and_the_node_can_try_again(make):
    room = make("autostart:=false", failure=InputError("lamp: no bulb"), fails_at="activated")
    assert room.trigger_configure() == TransitionCallbackReturn.SUCCESS
    assert room.trigger_activate() == TransitionCallbackReturn.FAILURE
    assert room.state == "inactive"
    assert room.story == ACTIVE + UNDONE[:2]
    room._fails_at = ""
    assert room.trigger_activate() == TransitionCallbackReturn.SUCCESS
    assert room.state == "active"


def test_a_fault_takes_everything_back_and_the_node_can_be_configured_again(make, capfd):
    room = make("autostart:=false", failure=ZeroDivisionError("half"), fails_at="activated")
    room.trigger_configure()
    room.trigger_activate()
    assert room.state == "unconfigured"
    assert room.story == ACTIVE + UNDONE
    assert "ZeroDivisionError: half" in capfd.readouterr().err
    assert room.trigger_configure() == TransitionCallbackReturn.SUCCESS


def set_one(room, name, value):
    return room.set_parameters([Parameter(name, value=value)])[0]


def test_a_parameter_changes_at_once_and_the_node_is_told(make):
    room = make()
    assert set_one(room, "lamp.watts", 8.0).successful
    assert room.config.lamp == LampConfig(watts=8.0) == room.story[-1]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("lamp.watts", 90.0, "lamp.watts"),
        ("lamp.watts", float("nan"), "lamp.watts"),
        ("door", "glass", "ros2 lifecycle set /room cleanup"),
        ("window", "shut", "ros2 lifecycle set /room deactivate"),
    ],
)
def test_a_change_that_cannot_be_is_refused_with_the_reason(make, name, value, words):
    room = make()
    before = room.config
    result = set_one(room, name, value)
    assert not result.successful and words in result.reason
    assert room.config == before


def test_what_is_read_later_may_change_before(make):
    room = make("autostart:=false")
    assert set_one(room, "door", "glass").successful
    room.trigger_configure()
    assert set_one(room, "window", "shut").successful
    assert (room.config.door, room.config.window) == ("glass", "shut")


def test_parameters_of_ros_itself_are_left_alone(make):
    room = make()
    assert set_one(room, "use_sim_time", True).successful


def test_undo_destroys_what_the_helpers_made(ros):
    ros.start("autostart:=false")

    class Busy(Room):
        def configure(self, undo):
            from rclpy.qos import qos_profile_sensor_data
            from std_msgs.msg import Empty

            self.publish_on(undo, Empty, "~/out", qos_profile_sensor_data)
            self.subscribe(undo, Empty, "~/in", print, qos_profile_sensor_data)
            self.repeat(undo, 1.0, partial(print, "tick"))

    room = ros.add(Busy())
    count = partial(
        lambda: [len(list(e)) for e in (room.publishers, room.subscriptions, room.timers)]
    )
    before = count()
    room.trigger_configure()
    assert count() == [n + 1 for n in before]
    room.trigger_cleanup()
    assert count() == before
