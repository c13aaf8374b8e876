"""tritonclient.grpc.aio: many calls at once on one channel, and the stream as an iterator."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from cases import SPELT, SPELT_VERSION, expect, expect_words, main, pair
from triton_grpc import INVALID, NOT_FOUND, both, check, given
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException


async def ask(client: InferenceServerClient, seed: int, model: str = "simple", **options: Any) -> None:
    first, second = pair(1 + seed % 3, seed)
    check(await client.infer(model, both(first, second), **options), first, second)


async def refusal(answer: Any) -> InferenceServerException:
    try:
        found = await answer
    except InferenceServerException as error:
        return error
    raise AssertionError(f"not refused; answered {found}")


async def case_health_and_metadata(address: str) -> None:
    async with InferenceServerClient(address) as client:
        expect(await client.is_server_live(), True, "live")
        expect(await client.is_server_ready(), True, "ready")
        expect(await client.is_model_ready(SPELT, SPELT_VERSION), True, "model ready")
        expect((await client.get_model_metadata(SPELT)).name, SPELT, "the name")


async def case_many_at_once_answer_their_own_inputs(address: str) -> None:
    async with InferenceServerClient(address) as client:
        await asyncio.gather(*(ask(client, seed, request_id=str(seed)) for seed in range(128)))


async def case_compression(address: str) -> None:
    async with InferenceServerClient(address) as client:
        for seed, algorithm in enumerate(("gzip", "deflate", None)):
            await ask(client, seed, compression_algorithm=algorithm)


async def case_a_stream_answers_in_order(address: str) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for seed in range(32):
            inputs = [given(pair()[0])] if seed == 9 else both(*pair(1, seed))
            yield {"model_name": "simple", "inputs": inputs, "request_id": str(seed)}

    async with InferenceServerClient(address) as client:
        answered = 0
        async for result, error in client.stream_infer(requests()):
            if answered == 9:
                expect_words(error.message(), ["missing input", "INPUT1"], "the error")
            else:
                expect((error, result.get_response().id), (None, str(answered)), "the answer")
                check(result, *pair(1, answered))
            answered += 1
        expect(answered, 32, "answers")


async def case_what_is_wrong_is_refused(address: str) -> None:
    async with InferenceServerClient(address) as client:
        error = await refusal(client.infer("simple", [given(pair()[0])]))
        expect_words(error.message(), ["missing input", "INPUT1"], "the error")
        expect(error.status(), INVALID, "the status")
        expect((await refusal(client.infer("absent", both(*pair())))).status(), NOT_FOUND, "the status")
        expect_words((await refusal(client.load_model("simple"))).message(), ["cannot load", "simple"], "the error")
        await ask(client, 7)


async def case_a_call_that_is_cancelled_leaves_no_trace(address: str) -> None:
    async with InferenceServerClient(address) as client:
        calls = [asyncio.ensure_future(ask(client, seed)) for seed in range(32)]
        await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        found = await asyncio.gather(*calls, return_exceptions=True)
        expect([error for error in found[1::2] if error is not None], [], "errors of the others")
        await ask(client, 99)


if __name__ == "__main__":
    main(globals())
