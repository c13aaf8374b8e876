"""`python -m service bench-engine MODEL`: the engine without HTTP and batching, one JSON line for each batch size.

Loads the model as `serve` would, then times `Instance.run` on the arena, gather, copies and scatter included, all
instances at once. loadtests/gpu_bench.py reads the lines.
"""

import json
import os
import time
from collections.abc import Callable, Iterator

from service.engine.bound import BoundInstance
from service.engine.instance import Instance
from service.engine.repository import ModelSettings, find_versions, load_version
from service.engine.session import UnservableModel
from service.engine.tune import batch_sizes, rate
from service.settings import Settings


def bench_engine(name: str, settings: Settings, loaded_as: ModelSettings, say: Callable[[str], None]) -> None:
    """Measure each batch size up to the largest that the instances take for a second. Raises UnservableModel."""
    version = next((found for found in find_versions(settings.repository) if found.name == name), None)
    if version is None:
        raise UnservableModel(f"{settings.repository} holds no model {name!r}")
    begun = time.monotonic()
    loaded = load_version(version, loaded_as)
    os.close(loaded.arena_fd)
    instances = loaded.setup.instances
    say(
        json.dumps(
            {
                "model": name,
                "version": version.version,
                "device": loaded_as.device,
                "instances": len(instances),
                "graphs": [_graphs(instance) for instance in instances],
                "load_s": round(time.monotonic() - begun, 3),
            }
        )
    )
    for line in _rates(instances):
        say(json.dumps(line))


def _rates(instances: list[Instance]) -> Iterator[dict[str, float]]:
    for size in batch_sizes(instances[0].max_batch_size):
        items_per_s = rate(instances, range(size), seconds=1.0)
        yield {"batch": size, "items_per_s": items_per_s, "ms": 1e3 * size * len(instances) / items_per_s}


def _graphs(instance: Instance) -> bool:
    return isinstance(instance, BoundInstance) and instance.graphs
