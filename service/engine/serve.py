"""An engine as the settings want it, and one as a process of its own."""

import os
import socket

from service.batching.link import Link
from service.control import Connect, receive
from service.engine.loop import Engine
from service.engine.orders import Orders
from service.engine.providers import Gpu
from service.engine.repository import ModelSettings
from service.engine.session import default_device
from service.lifecycle.frames import Place
from service.machine import available_cores, cuda_devices
from service.settings import Settings, settings_by_hand
from service.trust import trusted_keys


def model_settings(settings: Settings, number: int = 0) -> ModelSettings:
    """For engine `number`: it has the device of that number, and those beyond the last share. Raises SettingsError."""
    engine = settings.engine
    return ModelSettings(
        device=default_device() if engine.device == "auto" else engine.device,
        cores=settings.engine.cores or available_cores(),
        max_batch_size=settings.batching.max_batch_size,
        max_queue_items=settings.batching.max_queue_items,
        max_row_bytes=settings.batching.max_row_bytes,
        instances=settings.engine.instances,
        threads=settings.engine.threads,
        tune_budget_s=settings.engine.tune_budget_s,
        by_hand=settings_by_hand(settings),
        trusted_keys=trusted_keys(settings.control.require_signature),
        gpu=Gpu(
            number=number % max(1, len(cuda_devices())),
            cuda_graphs=engine.cuda_graphs,
            tf32=engine.tf32,
            fp16=engine.fp16,
            mem_limit_bytes=engine.gpu_mem_limit_bytes,
            allow_cpu_nodes=engine.allow_cpu_nodes,
            cache=engine.tensorrt_cache,
        ),
    )


def make_engine(settings: Settings, number: int, n_frontends: int, links: dict[int, Link], place: Place) -> Engine:
    """`number`: which of the devices; the links by number of the frontend."""
    loaded_as = model_settings(settings, number)
    return Engine(
        Orders(place, number, loaded_as),
        loaded_as,
        settings.batching.max_queue_delay_us,
        links,
        n_frontends,
        expects_frontends=n_frontends > 0,
    )


def run_engine(
    settings: Settings,
    number: int,
    n_frontends: int,
    links: dict[int, Link],
    control: socket.socket,
    place: Place,
) -> int:
    """Until the supervisor says that no more frontends come and the last has left; the exit status."""
    engine = make_engine(settings, number, n_frontends, links, place)
    engine.on_bug = lambda: os._exit(1)  # the supervisor starts another
    engine.start()
    while isinstance(order := receive(control), Connect):
        engine.attach(order.number, order.link)
    engine.stop_with_last_frontend()
    return 0
