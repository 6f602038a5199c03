from __future__ import annotations

import asyncio
import gc

import pytest

from tests.simulation.loop import Hang, Livelock, Process, SimulatedLoop, current_process, run


def test_time_jumps_and_order_is_that_of_the_timers() -> None:
    seen: list[tuple[float, str]] = []

    async def main(loop: SimulatedLoop) -> None:
        async def wait(delay_s: float, name: str) -> None:
            await asyncio.sleep(delay_s)
            seen.append((loop.time(), name))

        await asyncio.gather(wait(3600, "hour"), wait(1, "second"), wait(1, "second again"))

    run(main)
    assert seen == [(1, "second"), (1, "second again"), (3600, "hour")]


def test_a_frozen_process_runs_later_and_in_order() -> None:
    seen: list[tuple[float, int]] = []

    async def main(loop: SimulatedLoop) -> None:
        process = Process(loop, "p")

        async def work() -> None:
            for number in range(4):
                await asyncio.sleep(1)
                seen.append((loop.time(), number))

        process.spawn(work())
        await asyncio.sleep(1.5)
        process.freeze()
        await asyncio.sleep(10)
        assert seen == [(1, 0)]
        process.thaw()
        await asyncio.sleep(3)

    run(main)
    assert seen == [(1, 0), (11.5, 1), (12.5, 2), (13.5, 3)]


def test_a_killed_process_runs_not_even_its_finally() -> None:
    seen: list[str] = []

    async def main(loop: SimulatedLoop) -> None:
        process = Process(loop, "p")

        async def work() -> None:
            assert current_process() is process
            try:
                await asyncio.sleep(2)
            finally:
                seen.append("finally")

        process.spawn(work())
        await asyncio.sleep(1)
        process.kill()
        await asyncio.sleep(10)
        assert not seen
        assert current_process() is None

    run(main)


def test_a_hang_is_found() -> None:
    async def main(loop: SimulatedLoop) -> None:
        await loop.create_future()

    with pytest.raises(Hang):
        run(main)


def test_an_endless_ready_queue_is_found() -> None:
    async def main(loop: SimulatedLoop) -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(Livelock):
        run(main)


def test_two_that_answer_each_other_without_end_are_found() -> None:
    async def main(loop: SimulatedLoop) -> None:
        while True:
            await asyncio.sleep(0.000_001)

    with pytest.raises(Livelock):
        run(main)


def test_an_exception_that_nobody_takes_is_a_failure_of_its_process() -> None:
    async def main(loop: SimulatedLoop) -> None:
        process = Process(loop, "p")

        async def work() -> None:
            raise ValueError("lost")

        task = process.spawn(work())
        await asyncio.sleep(1)
        del task
        gc.collect()  # 3.13 holds on to it a little longer
        process.call({}.__getitem__, 0)
        await asyncio.sleep(1)
        seen = [(where, type(error)) for where, error in loop.failures]
        assert seen == [(process, ValueError), (process, KeyError)]

    run(main)


def test_work_for_threads_is_done_at_once() -> None:
    async def main(loop: SimulatedLoop) -> None:
        assert await loop.run_in_executor(None, lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 // 0)

    run(main)
