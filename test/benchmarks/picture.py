"""The demo's report -> the picture in README.md: run `make demo`, then this file.

Above, the fused map in its true colours and its instances; below, some of the pictures it was made
of. Needs chromium, which draws the report's own 3D view.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

REPOSITORY = Path(__file__).parents[2]
REPORT = REPOSITORY / "output" / "demo" / "report.html"
PICTURE = REPOSITORY / "test" / "data" / "result.jpg"
VIEW = (800, 560)
PHOTOS = (1, 2, 4, 7)  # of those in the report, side by side
STAND = "view.yaw = 2.5; view.pitch = 0.62; view.distance *= 0.6; view.target[2] -= 0.3;"
# Nothing but the view, and that as large as the window.
STYLE = """main { max-width: none; padding: 0 }
header, .figures, .side, .columns, footer, .bar, .help { display: none !important }
.scene { height: 100vh !important; grid-template: 1fr / 1fr !important; border: 0 }
.card { border-radius: 0 }"""
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --use-angle=swiftshader "
    "--enable-unsafe-swiftshader --hide-scrollbars --virtual-time-budget=8000"
)


def main() -> None:
    """Writes the picture."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium or not REPORT.exists():
        sys.exit(f"expected chromium and {REPORT}: install the one, make demo gives the other")
    report = REPORT.read_text(encoding="utf-8")
    views = [drawn(chromium, report, colors) for colors in ("color", "instance")]
    picture = np.vstack([np.hstack(views), np.hstack(photos(report))])
    cv2.imwrite(str(PICTURE), picture, [cv2.IMWRITE_JPEG_QUALITY, 82])


def drawn(chromium: str, report: str, colors: str) -> np.ndarray:
    """(H, W, 3) BGR of the report's view in these colours."""
    script = f"{STAND} setColors('{colors}');"
    page = report.replace("</body>", f"<style>{STYLE}</style><script>{script}</script></body>")
    with tempfile.TemporaryDirectory() as folder:
        path, screenshot = Path(folder, "page.html"), Path(folder, "screenshot.png")
        path.write_text(page, encoding="utf-8")
        size = f"--window-size={VIEW[0]},{VIEW[1]}"
        command = [chromium, *OPTIONS.split(), size, f"--screenshot={screenshot}", path.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        return cv2.imread(str(screenshot))


def photos(report: str) -> list[np.ndarray]:
    """Some of the report's pictures (H, W, 3) BGR, together as wide as the two views."""
    data = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', report)
    pictures = json.loads(data[1])["pictures"]
    width = 2 * VIEW[0] // len(PHOTOS)
    shown = []
    for index in PHOTOS:
        jpeg = base64.b64decode(pictures[index]["jpeg"].partition(",")[2])
        photo = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        shown.append(cv2.resize(photo, (width, width * photo.shape[0] // photo.shape[1])))
    return shown


if __name__ == "__main__":
    main()
