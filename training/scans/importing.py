"""What the importers of data sets share: what went in, what came of it, and how a command ends."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from training.artifacts import HASH_DIGITS
from training.scans.library import ABOUT_FILE, Library
from unscene_ros.scene import InputError
from unscene_ros.storage import prepare_output_folder, whole_file
from unscene_ros.synchronization import Drops

REPORT_FILE = "import.json"  # beside scan.json
INTERRUPTED = "its import was interrupted: import it again"
_END_BYTES = 1 << 20


@dataclass(slots=True)
class ImportReport:
    """What became of one scan's parts; a scan with problems is there, but not whole.

    step, source: which importer it was, and the path that it read.
    """

    step: str = ""
    source: str = ""
    frames: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @staticmethod
    def begin(folder: Path, step: str, source: Path) -> ImportReport:
        """The report of an import into a scan's folder, which is made; raises InputError.

        Until the surface is written, what is in the folder counts as interrupted.
        """
        prepare_output_folder(folder)
        (folder / ABOUT_FILE).unlink(missing_ok=True)
        report = ImportReport(step, str(source.resolve()))
        replace(report, problems=[INTERRUPTED]).save(folder)
        return report

    def count_frames(self, used: int, drops: Drops) -> None:
        """Takes over how many frames there are; that none is left of some is a problem."""
        self.frames, self.dropped = used, dict(drops.counts)
        if "cut off" in drops.counts:
            self.problems.append(drops.explanations["cut off"])
        if not used and drops.counts:
            self.problems.append(f"no usable frame: {'; '.join(drops.explanations.values())}")

    def save(self, folder: Path) -> None:
        """Writes it into a scan's folder; raises InputError."""
        with whole_file(folder / REPORT_FILE) as file:
            file.write((json.dumps(asdict(self), indent=2) + "\n").encode())

    @staticmethod
    def load(folder: Path) -> ImportReport:
        """What was saved; an empty report for a scan without one."""
        try:
            return ImportReport(**json.loads((folder / REPORT_FILE).read_text()))
        except (OSError, ValueError, TypeError):
            return ImportReport()


def hash_of_ends(path: Path) -> str:
    """Twelve hex digits over a large file's size, first and last megabyte; raises InputError."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            digest = hashlib.sha256(f"{size} ".encode() + file.read(_END_BYTES))
            file.seek(max(size - _END_BYTES, 0))
            digest.update(file.read(_END_BYTES))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()[:HASH_DIGITS]


def hash_of_listing(folder: Path, pattern: str = "**/*") -> str:
    """Twelve hex digits over the names and sizes of the files below a folder."""
    lines = sorted(
        f"{path.relative_to(folder)} {path.stat().st_size}"
        for path in folder.glob(pattern)
        if path.is_file()
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:HASH_DIGITS]


def report_at_end(library: Library, names: Iterable[str]) -> int:
    """Prints what is in the library of these scans; returns 1 when a scan is not whole, else 0."""
    scans = [library.scan(name) for name in names]
    made = {scan.name: ImportReport.load(scan.folder) for scan in scans if scan.about()}
    frame_count = sum(report.frames for report in made.values())
    dropped: dict[str, int] = {}
    for report in made.values():
        for reason, count in report.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    print(f"{library.root}: {len(made)} of {len(scans)} scans, {frame_count} frames", end="")
    print(f", dropped {dropped}" if dropped else "")
    problems = [(name, problem) for name in made for problem in made[name].problems]
    for name, problem in problems:
        print(f"incomplete: {name}: {problem}", file=sys.stderr)
    return 1 if problems else 0
