"""kserve's InferenceGRPCClient: inputs as numbers in the message and as raw bytes."""

import asyncio
from typing import Any

import grpc
import numpy as np
from cases import SPELT, SPELT_VERSION, WORDS, Array, as_words, expect, expect_array, expect_words, main, pair
from kserve import InferenceGRPCClient, InferInput
from kserve_rest import array_of, asking, check, given


def listed(array: Array, name: str = "INPUT0", datatype: str = "INT32") -> InferInput:
    """Its values in the message, not as bytes."""
    return InferInput(name, list(array.shape), datatype, array.ravel().tolist())


async def refusal(answer: Any) -> grpc.aio.AioRpcError:
    try:
        found = await answer
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError(f"not refused; answered {found}")


async def case_health(address: str) -> None:
    async with InferenceGRPCClient(address) as client:
        expect(await client.is_server_live(), True, "live")
        expect(await client.is_server_ready(), True, "ready")
        expect(await client.is_model_ready("simple"), True, "model ready")


async def case_numbers_in_the_message_and_raw_bytes(address: str) -> None:
    async with InferenceGRPCClient(address) as client:
        for seed, tensor in enumerate((listed, given)):
            first, second = pair(2, seed)
            request = asking("simple", tensor(first), tensor(second, "INPUT1"), request_id="mine")
            response = await client.infer(request)
            check(response, first, second)
            expect((response.id, response.model_name), ("mine", "simple"), "the answer")


async def case_every_kind_of_element(address: str) -> None:
    async with InferenceGRPCClient(address) as client:
        floats = np.array([[0.5, -2, np.inf, -0.0]], np.float32)
        for tensor in (listed(floats, datatype="FP32"), given(floats)):
            response = await client.infer(asking("simple_fp32", tensor))
            expect_array(array_of(response, "OUTPUT0"), floats, "FP32")
        half = np.array([[0.5, -2, 6e-8, 30000]], np.float16)
        response = await client.infer(asking("simple_fp16", given(half)))
        expect_array(array_of(response, "OUTPUT0"), half + half, "FP16")
        for tensor in (listed(WORDS, datatype="BYTES"), given(WORDS)):
            response = await client.infer(asking("simple_identity", tensor))
            expect(as_words(array_of(response, "OUTPUT0")), WORDS.ravel().tolist(), "BYTES")


async def case_a_version_and_a_name(address: str) -> None:
    async with InferenceGRPCClient(address) as client:
        first, second = pair(3)
        request = asking(SPELT, given(first), given(second, "INPUT1"), model_version=SPELT_VERSION)
        response = await client.infer(request)
        check(response, first, second)
        expect(response.model_version, SPELT_VERSION, "the version")


async def case_many_at_once_answer_their_own_inputs(address: str) -> None:
    async with InferenceGRPCClient(address) as client:

        async def ask(seed: int) -> None:
            first, second = pair(1 + seed % 3, seed)
            check(await client.infer(asking("simple", given(first), given(second, "INPUT1"))), first, second)

        await asyncio.gather(*(ask(seed) for seed in range(64)))


async def case_an_error_has_our_text_and_code(address: str) -> None:
    async with InferenceGRPCClient(address) as client:
        error = await refusal(client.infer(asking("simple", given(pair()[0]))))
        expect_words(error.details(), ["missing input", "INPUT1"], "the error")
        expect(error.code(), grpc.StatusCode.INVALID_ARGUMENT, "the code")
        error = await refusal(client.infer(asking("absent", given(pair()[0]))))
        expect(error.code(), grpc.StatusCode.NOT_FOUND, "the code")


if __name__ == "__main__":
    main(globals())
