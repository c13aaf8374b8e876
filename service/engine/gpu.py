"""A session on a GPU: the same face, on a thread of its own, opened so that nothing is left to the CPU in silence.

Ordinary runs are those of `Session`, without graphs. Where all tensors have items of fixed size, `bound.py` binds
buffers to it and captures graphs. Reasons, and what has not run on a GPU yet: docs/adr/0017.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnxruntime as ort

from service.engine.lane import Lane
from service.engine.providers import PROVIDERS, Device, Gpu, Node, complaint, nodes_on_cpu, providers, wants_graphs
from service.engine.session import Session, UnservableModel, open_onnxruntime, session_options

log = logging.getLogger(__name__)

_NO_GRAPH = "-1"


class GpuSession(Session):
    """`run` hands over to the session's own thread, and may be called by any, one at a time.

    graphs   whether this session may capture and replay
    """

    def __init__(self, path: Path, device: Device, gpu: Gpu) -> None:
        """Raises UnservableModel, also where nodes were left to the CPU."""
        self.device = device
        self.gpu = gpu
        self.graphs = wants_graphs(device, gpu)
        self.path = path
        self.lane = Lane(f"shoal-gpu-{path.parent.parent.name}")
        super().__init__(path, 1)
        self._options = run_options()

    @property
    def onnxruntime(self) -> ort.InferenceSession:
        return self._session

    def run(self, feeds: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        def run() -> list[npt.NDArray[Any]]:
            with self.gpu.turns.together():
                return self.run_here(feeds)

        return self.lane.call(run)

    def run_here(self, feeds: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """`run` for who is on the lane and has their turn."""
        return Session.run(self, feeds)

    @contextlib.contextmanager
    def quietly(self) -> Iterator[None]:
        self._options = run_options()
        self._options.log_severity_level = 4
        try:
            yield
        finally:
            self._options = run_options()

    def open_without_graphs(self) -> None:
        """Again: what a failed capture leaves behind is not to be relied on."""
        self.graphs = False
        self._session = self._open(self.path, 1)

    def _open(self, path: Path, threads: int) -> ort.InferenceSession:
        return self.lane.call(lambda: self._open_here(path, threads))

    def _open_here(self, path: Path, threads: int) -> ort.InferenceSession:
        if self.device != "cpu":
            ort.preload_dlls(directory="")  # CUDA and cuDNN from the packages beside onnxruntime-gpu
        with self.gpu.turns.together():
            if self.graphs:
                try:
                    return self._open_whole(path, threads)
                except UnservableModel as error:
                    # onnxruntime refuses graphs where there is control flow or a copy between nodes and the host.
                    reason = error
                self.graphs = False
                session = self._open_whole(path, threads)
                log.warning("%s: runs without CUDA graphs: %s", path.parent, reason)
                return session
            return self._open_whole(path, threads)

    def _open_whole(self, path: Path, threads: int) -> ort.InferenceSession:
        options = session_options(threads)
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        session = open_onnxruntime(path, options, providers(self.device, self.gpu, self.graphs))
        on_cpu = nodes_on_cpu(assigned_nodes(session)) if self.device != "cpu" else []
        if on_cpu and not self.gpu.allow_cpu_nodes:
            raise UnservableModel(f"{path.name}: {complaint(on_cpu, PROVIDERS[self.device])}")
        return session


def assigned_nodes(session: ort.InferenceSession) -> list[Node]:
    """All nodes, as onnxruntime spread them over its providers when it opened the file."""
    return [
        Node(part.ep_name, node.op_type, node.name)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]


def run_options(graph: str = _NO_GRAPH) -> ort.RunOptions:
    """For runs without a graph, or with the one of this number."""
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", graph)
    return options
