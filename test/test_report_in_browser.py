"""The report as a person uses it, in headless Chromium: what is clicked, read and seen."""

import shutil

import cv2
import numpy as np
import pytest
from small_report import METRICS, frame, two_tiles

from unscene_ros.palette import instance_colors
from unscene_ros.report import write_report

BROWSERS = ("chromium", "google-chrome")
MISSING = [
    kind
    for kind, names in {"Chromium": BROWSERS, "its driver": ("chromedriver",)}.items()
    if not any(map(shutil.which, names))
]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"{' and '.join(MISSING)} not installed; see `make browser`"
)

# The page draws with WebGL 2: in software, so that it does so on a machine without GPU as well.
OPTIONS = ["--headless=new", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
OPTIONS += ["--no-sandbox", "--disable-dev-shm-usage"]  # as root, in a container
OPTIONS += ["--window-size=1280,1000", "--force-device-scale-factor=1", "--hide-scrollbars"]
OPTIONS += ["--disable-background-networking", "--disable-component-update"]

# Of a camera that looks along +y with z up, so that the tiles lie flat under the view.
LEVEL = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 1], [0, 0, 0, 1]])


class Page:
    """A report in a browser of its own."""

    def __init__(self, path, browser):
        self.browser = browser
        browser.get(path.as_uri())

    def find(self, selector):
        return self.browser.find_element("css selector", selector)

    def text(self, selector):
        """As it is shown; empty for what is hidden."""
        return self.find(selector).text

    def choose(self, colors):
        """Clicks one of the buttons for the colours."""
        self.find(f'#color-choice [data-colors="{colors}"]').click()

    def picture(self):
        """(height, width, 3) RGB of the 3D view as it is on the screen."""
        # Two frames on, the browser has drawn what was asked for.
        self.browser.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done));"
        )
        png = np.frombuffer(self.find("#scene-canvas").screenshot_as_png, np.uint8)
        return cv2.cvtColor(cv2.imdecode(png, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)

    def click(self, x, y):
        """Clicks a pixel of the 3D view."""
        from selenium.webdriver import ActionChains

        canvas = self.find("#scene-canvas")
        middle = canvas.rect["width"] / 2, canvas.rect["height"] / 2
        mouse = ActionChains(self.browser)
        mouse.move_to_element_with_offset(canvas, round(x - middle[0]), round(y - middle[1]))
        mouse.click().perform()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, BROWSERS)))
    profile = tmp_path_factory.mktemp("profile")
    for option in (*OPTIONS, f"--user-data-dir={profile}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options, service) as browser:
        browser.set_script_timeout(60)
        yield browser


@pytest.fixture
def page(browser, tmp_path):
    """The report of two tiles, with everything that a report may hold."""
    path = tmp_path / "report.html"
    received = {
        "first_instances_s": 1.25,
        "topics": {"/instances": {"messages": 3, "rate_hz": 1.0, "latency_ms": None}},
    }
    metrics = METRICS | live_and_offline()
    write_report(path, metrics, two_tiles(), [frame(LEVEL)], received)
    yield Page(path, browser)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def live_and_offline():
    """Metrics of a live run, judged, beside its replay."""

    def quality(ap50, delay):
        return {
            "summary": {"mean_ap50": np.mean(ap50), "id_switches_per_object": 0.0},
            "curve": {"time_s": [1, 2], "ap50": ap50, "recall": [None, 1], "objects": [0, 1]},
            "objects": [
                {
                    "object": 4,
                    "first_seen_s": 1.0,
                    "found_after_s": delay,
                    "id_switches": 0,
                    "share_under_one_id": 0.5,
                }
            ],
        }

    gap = {"live": 0.25, "offline": 0.75, "gap": -0.5}
    return {
        "quality_over_time": quality([0.0, 0.5], 2.5),
        "offline": {"quality_over_time": quality([0.5, 1.0], None)},
        "side_by_side": {"mean_ap50": gap},
    }


def of_color(picture, color):
    """(height, width) bool: pixels of this hue, as dark as the light on the surface makes them."""
    pixels, color = picture.astype(float), np.array(color, float)
    lengths = np.linalg.norm(pixels, axis=2)
    alike = pixels @ color / np.maximum(lengths * np.linalg.norm(color), 1)
    return (alike > 0.995) & (lengths > 60)


def share_of(picture, color):
    return of_color(picture, color).mean()


def test_each_choice_of_colours_paints_the_tiles_alone(page):
    tiles = two_tiles()
    (true_color,) = np.unique(tiles.mesh.colors, axis=0)
    instances = instance_colors(tiles.track_ids)
    segments = [page.browser.execute_script(f"return segmentColor({s})") for s in (0, 1)]
    of_choice = {"color": [true_color], "instance": instances, "segment": segments}
    everything = [color for colors in of_choice.values() for color in colors]
    painted = {}
    for choice, own in of_choice.items():
        page.choose(choice)
        pressed = page.browser.find_elements("css selector", '#color-choice [aria-pressed="true"]')
        assert [button.get_attribute("data-colors") for button in pressed] == [choice]
        picture = page.picture()
        shares = [share_of(picture, color) for color in own]
        assert min(shares) > 0.03
        painted[choice] = sum(shares)
        for other in everything:
            if not any(np.array_equal(other, color) for color in own):
                assert share_of(picture, other) < 0.01  # edges blend
    # The same surface in each.
    assert np.ptp(list(painted.values())) < 0.05 * max(painted.values())


def test_a_click_on_an_instance_tells_its_id_and_greys_the_others(page):
    colors = instance_colors(two_tiles().track_ids)
    before = page.picture()
    assert page.text("#chosen b") == "2 instances"
    for index, track_id in enumerate((7, 9)):
        y, x = (int(np.median(places)) for places in np.nonzero(of_color(before, colors[index])))
        page.click(x, y)
        assert page.text("#chosen b") == f"Instance {track_id}"
        assert page.text("#tag").startswith(f"#{track_id} · 0.90 × ")
        assert page.text('#instance-list [aria-pressed="true"]').startswith(f"#{track_id}\n")
        after = page.picture()
        # Its tag and its box cover some of it.
        assert share_of(after, colors[index]) > 0.6 * share_of(before, colors[index])
        assert share_of(after, colors[1 - index]) < 0.001
    page.click(3, before.shape[0] - 3)  # beside everything
    assert page.text("#chosen b") == "2 instances" and page.text("#tag") == ""
    assert np.abs(page.picture().astype(int) - before).mean() < 0.5


def test_the_list_selects_too_and_a_second_click_lets_go(page):
    first = page.find("#instance-list button")  # the best score
    first.click()
    assert page.text("#chosen b") == "Instance 9" and "0.75" in page.text("#chosen")
    first.click()
    assert page.text("#chosen b") == "2 instances"


def test_dragging_turns_the_view_and_resetting_brings_it_back(page):
    from selenium.webdriver import ActionChains

    before = page.picture()
    canvas = page.find("#scene-canvas")
    ActionChains(page.browser).drag_and_drop_by_offset(canvas, 150, 60).perform()
    turned = page.picture()
    assert page.text("#chosen b") == "2 instances"  # a drag is no click
    assert np.abs(turned.astype(int) - before).mean() > 2
    page.find("#reset-view").click()
    assert np.abs(page.picture().astype(int) - before).mean() < 0.5


def test_quality_over_time_shows_live_and_offline_with_their_gap(page):
    rows = page.text("#quality table")
    assert "AP50, mean of all maps 25.0 % 75.0 % -50.0 %" in rows
    ticks = [tick.text for tick in page.browser.find_elements("css selector", ".chart text")]
    assert ticks == ["0 %", "25 %", "50 %", "75 %", "100 %", "0 s", "0.5 s", "1 s", "1.5 s", "2 s"]
    lines = page.browser.find_elements("css selector", "#quality .chart path")
    assert [line.get_attribute("class") for line in lines] == ["ap50 ", "ap50 offline"]
    points = page.browser.find_elements("css selector", "#quality .chart circle")  # one value each
    assert [point.get_attribute("class") for point in points] == ["recall", "recall"]
    page.find("#quality summary").click()
    assert "4 1.0 s 1.0 s 2.5 s – 0 0 50.0 % 50.0 %" in page.text("#quality details")


def test_text_of_the_run_is_shown_and_not_obeyed(page):
    assert page.browser.title == "room </script><b> · unscene report"
    assert page.text("#title") == "room </script><b>"
    assert "No ground truth was given" in page.text("#evaluation")
    assert "First instances 1.3 s after the first frame" in page.text("#received")
