"""tritonclient.http.aio: the same flows in an event loop, many at once on a pool of connections."""

import asyncio
from typing import Any

import numpy as np
from cases import SPELT, WORDS, Array, as_words, expect, expect_array, expect_pair, expect_words, main, pair
from tritonclient.http import InferInput, InferRequestedOutput
from tritonclient.http.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype


def given(array: Array, name: str = "INPUT0", binary: bool = True) -> InferInput:
    tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


async def ask(client: InferenceServerClient, seed: int, n: int = 1, model: str = "simple", **options: Any) -> None:
    """One request, compared with its own input; JSON and binary in turn."""
    first, second = pair(n, seed)
    binary = seed % 2 == 0
    inputs = [given(first, "INPUT0", binary), given(second, "INPUT1", binary)]
    outputs = [InferRequestedOutput(name, binary_data=seed % 3 == 0) for name in ("OUTPUT1", "OUTPUT0")]
    result = await client.infer(model, inputs, outputs=outputs, **options)
    expect_pair(first, second, result.as_numpy("OUTPUT0"), result.as_numpy("OUTPUT1"))


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
        expect(await client.is_model_ready("simple", "1"), True, "model ready")
        expect(await client.is_model_ready("absent"), False, "a model that is not there")
        expect((await client.get_server_metadata())["name"], "shoal", "the name")
        expect((await client.get_model_metadata(SPELT))["name"], SPELT, "the name")


async def case_one_after_another(address: str) -> None:
    async with InferenceServerClient(address) as client:
        for seed in range(12):
            await ask(client, seed, 1 + seed % 4, request_id=str(seed))


async def case_many_at_once_answer_their_own_inputs(address: str) -> None:
    async with InferenceServerClient(address, conn_limit=16) as client:
        await asyncio.gather(*(ask(client, seed, 1 + seed % 3) for seed in range(128)))


async def case_requests_and_answers_are_compressed(address: str) -> None:
    encodings = (None, "gzip", "deflate")
    async with InferenceServerClient(address) as client:
        for seed, (there, back) in enumerate((there, back) for there in encodings for back in encodings):
            compression = {"request_compression_algorithm": there, "response_compression_algorithm": back}
            await ask(client, seed, 40, **compression)


async def case_strings_numbers_and_names(address: str) -> None:
    async with InferenceServerClient(address) as client:
        result = await client.infer("simple_identity", [given(WORDS)])
        expect(as_words(result.as_numpy("OUTPUT0")), WORDS.ravel().tolist(), "OUTPUT0")
        array = np.array([[np.nan, np.inf, -np.inf, -0.0]], np.float32)
        expect_array((await client.infer("simple_fp32", [given(array)])).as_numpy("OUTPUT0"), array, "OUTPUT0")
        await ask(client, 5, model=SPELT, model_version="3")


async def case_what_is_wrong_is_refused(address: str) -> None:
    async with InferenceServerClient(address) as client:
        error = await refusal(client.infer("simple", [given(pair()[0])]))
        expect_words(error.message(), ["missing input", "INPUT1"], "the error")
        expect(error.status(), "400", "the status")
        error = await refusal(client.infer("absent", [given(pair()[0])]))
        expect((error.status(), "absent" in error.message()), ("404", True), "an unknown model")
        await ask(client, 7)


async def case_a_request_that_is_given_up_leaves_no_trace(address: str) -> None:
    async with InferenceServerClient(address) as client:
        requests = [asyncio.ensure_future(ask(client, seed)) for seed in range(32)]
        await asyncio.sleep(0)
        for request in requests[::2]:
            request.cancel()
        found = await asyncio.gather(*requests, return_exceptions=True)
        expect([error for error in found[1::2] if error is not None], [], "errors of the others")
        await ask(client, 99)


async def case_extensions(address: str) -> None:
    async with InferenceServerClient(address) as client:
        expect((await client.get_model_config("simple"))["name"], "simple", "the configuration's name")
        (one,) = (await client.get_inference_statistics("simple"))["model_stats"]
        expect((one["name"], one["version"]), ("simple", "1"), "the statistics' model")
        index = await client.get_model_repository_index()
        expect(SPELT in {entry["name"] for entry in index}, True, "the index")
        expect_words((await refusal(client.load_model("simple"))).message(), ["cannot load", "simple"], "the error")
        expect_words((await refusal(client.unload_model("simple"))).message(), ["cannot unload", "simple"], "the error")


if __name__ == "__main__":
    main(globals())
