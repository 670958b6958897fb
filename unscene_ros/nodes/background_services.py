"""Services whose work may take long: a thread does it, so that neither camera nor caller waits."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from std_srvs.srv import Trigger

from unscene_ros.nodes.managed import ManagedNode
from unscene_ros.scene import InputError
from unscene_ros.srv import NamedFile
from unscene_ros.storage import inside, prepare_output_folder

ANSWER_WITHIN_S = 0.1


class BackgroundServices:
    """One thread; a service answers with the result, or that the work goes on.

    Work says in one sentence what it did, and raises InputError when it cannot. `last` is the end
    of the latest work and `failed` how it was, for diagnostics; the log has it as well.
    """

    def __init__(self, node: ManagedNode, undo: ExitStack, folder: str) -> None:
        """Files stay inside `folder`, and without one the services of files refuse.

        Raises InputError for a folder that cannot be written.
        """
        self.last = ""
        self.failed = False
        self.folder = Path(folder).expanduser() if folder else None
        if self.folder:
            prepare_output_folder(self.folder)
        self._node = node
        self._undo = undo
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="services")
        undo.callback(self._thread.shutdown)  # what was begun is finished

    def offer(self, name: str, work: Callable[[], str]) -> None:
        """The service `~/name` without arguments."""
        self._serve(Trigger, name, lambda _: self.start(name, work))

    def offer_file(self, name: str, endings: tuple[str, ...], work: Callable[[Path], str]) -> None:
        """The service `~/name` for a file with one of these endings."""
        self._serve(
            NamedFile,
            name,
            lambda request: self.start(name, work, self._path(request.name, endings)),
        )

    def start(self, name: str, work: Callable[..., str], *arguments: Any) -> Future[str]:
        """Begins the work in the thread."""
        return self._thread.submit(self._do, name, work, *arguments)

    def _serve(self, kind: type, name: str, begin: Callable[[Any], Future[str]]) -> None:
        def answer(request: Any, response: Any) -> Any:
            try:
                response.message = begin(request).result(ANSWER_WITHIN_S)
                response.success = True
            except NotYet:
                response.message = f"{name} goes on in the background: its end is in the log"
                response.success = True
            except InputError as error:
                response.message = str(error)
                self.failed = False  # who asked has been told
            return response

        service = self._node.create_service(kind, f"~/{name}", answer)
        self._undo.callback(self._node.destroy_service, service)

    def _do(self, name: str, work: Callable[..., str], *arguments: Any) -> str:
        try:
            told = work(*arguments)
        except Exception as error:
            self.last, self.failed = f"{name} failed: {error}", True
            self._node.get_logger().error(self.last)
            raise error if isinstance(error, InputError) else InputError(repr(error)) from error
        self.last, self.failed = f"{name}: {told}", False
        self._node.get_logger().info(self.last)
        return told

    def _path(self, name: str, endings: tuple[str, ...]) -> Path:
        if not self.folder:
            raise InputError("map_folder: expected a folder for files, got none: set the parameter")
        if not name.endswith(endings):
            raise InputError(f"name: expected the ending {' or '.join(endings)}, got '{name}'")
        return inside(self.folder, name)
