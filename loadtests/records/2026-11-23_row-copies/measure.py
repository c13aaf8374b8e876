"""What one 784-byte row costs to copy into the arena, alone and beside a thread that wants the interpreter's lock; and
what it costs to put a time limit on an await. Median microseconds of each way, ways in turns."""

import asyncio
import statistics
import threading
import time

import numpy as np
import uvloop

from models.manifest import TensorSpec
from service.batching.arena import create_arena

SHAPE = (28, 28, 1)
ROUNDS, TIMES = 7, 2000
_, arena = create_arena((TensorSpec("x", "UINT8", (-1, *SHAPE)),), (TensorSpec("y", "FP32", (-1, 10)),), 64)
region = arena.inputs["x"]
body = bytes(784)
shaped = region.array.reshape(64, *SHAPE)
flat = np.frombuffer(body, np.uint8).reshape(1, -1)
image = flat.reshape(1, *SHAPE)


def by_index_list(slot):
    shaped[[slot]] = image


def flat_numpy(slot):
    region.array[slot] = flat[0]


def memoryview_copy(slot):
    region.write((slot,), body)


def median_us(way):
    taken = []
    for i in range(TIMES):
        sum(range(2000))  # the rest of a request, with the lock: meanwhile the others come to wait for it
        begun = time.perf_counter_ns()
        way(i % 64)
        taken.append(time.perf_counter_ns() - begun)
    return statistics.median(taken) / 1000


def compare(title):
    ways = (by_index_list, flat_numpy, memoryview_copy)
    rounds = [[median_us(way) for way in ways] for _ in range(ROUNDS)]
    for way, column in zip(ways, zip(*rounds)):
        print(f"{title:<28}{way.__name__:<18}{statistics.median(column):8.2f}  ({min(column):.2f} to {max(column):.2f})")


def contender(stop):
    while not stop.is_set():
        sum(range(500))  # some microseconds with the lock
        time.sleep(20e-6)  # without it, as in a system call or a run; then it wants the lock back


async def limits():
    loop = asyncio.get_running_loop()

    async def with_timeout():
        async with asyncio.timeout(30):
            pass

    async def with_timer():
        task = asyncio.current_task(loop)
        timer = loop.call_later(30, task.cancel)
        timer.cancel()

    ways = (with_timeout, with_timer)
    rounds = []
    for _ in range(ROUNDS):
        row = []
        for way in ways:
            begun = time.perf_counter_ns()
            for _ in range(TIMES):
                await way()
            row.append((time.perf_counter_ns() - begun) / TIMES / 1000)
        rounds.append(row)
    for way, column in zip(ways, zip(*rounds)):
        print(f"{'time limit':<28}{way.__name__:<18}{statistics.median(column):8.2f}  ({min(column):.2f} to {max(column):.2f})")


compare("alone")
stop = threading.Event()
threads = [threading.Thread(target=contender, args=(stop,)) for _ in range(2)]
for thread in threads:
    thread.start()
compare("beside two such threads")
stop.set()
for thread in threads:
    thread.join()
uvloop.run(limits())
