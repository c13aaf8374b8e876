"""kserve's InferenceRESTClient, of both protocols, and inputs as JSON, as numpy and as bytes."""

import asyncio
from typing import Any

import httpx
import numpy as np
from cases import (
    SPELT,
    WORDS,
    Array,
    as_text,
    as_words,
    expect,
    expect_array,
    expect_pair,
    expect_words,
    main,
    pair,
)
from kserve import InferenceRESTClient, InferInput, InferRequest, InferResponse, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

DATATYPES = {"int32": "INT32", "float16": "FP16", "float32": "FP32", "object": "BYTES"}


def given(array: Array, name: str = "INPUT0", binary: bool = True) -> InferInput:
    tensor = InferInput(name, list(array.shape), DATATYPES[array.dtype.name])
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def asking(model: str, *inputs: InferInput, **options: Any) -> InferRequest:
    return InferRequest(model, list(inputs), **options)


def client_of(protocol: str) -> InferenceRESTClient:
    return InferenceRESTClient(RESTConfig(protocol=protocol, retries=0, timeout=20))


def array_of(response: InferResponse, name: str) -> Array:
    return response.get_output_by_name(name).as_numpy()


def check(response: InferResponse, first: Array, second: Array) -> None:
    expect_pair(first, second, array_of(response, "OUTPUT0"), array_of(response, "OUTPUT1"))


async def refusal(answer: Any) -> httpx.HTTPStatusError:
    try:
        found = await answer
    except httpx.HTTPStatusError as error:
        return error
    raise AssertionError(f"not refused; answered {found}")


async def case_health(address: str) -> None:
    async with client_of("v2") as client:
        expect(await client.is_server_live(address), True, "live")
        expect(await client.is_server_ready(address), True, "ready")
        expect(await client.is_model_ready(address, "simple"), True, "model ready")
        expect(await client.is_model_ready(address, "absent"), False, "a model that is not there")


async def case_inputs_in_json_and_binary(address: str) -> None:
    async with client_of("v2") as client:
        for seed, binary in enumerate([(True, True), (False, False), (True, False), (False, True)]):
            first, second = pair(2, seed)
            request = asking("simple", given(first, "INPUT0", binary[0]), given(second, "INPUT1", binary[1]))
            response = await client.infer(address, request, model_name="simple")
            check(response, first, second)
            expect(response.model_name, "simple", "the model")


async def case_nested_lists_and_plain_dictionaries(address: str) -> None:
    async with client_of("v2") as client:
        first, second = pair(2, seed=5)
        tensors = [("INPUT0", first), ("INPUT1", second)]
        request = asking("simple", *(InferInput(name, [2, 16], "INT32", array.tolist()) for name, array in tensors))
        check(await client.infer(address, request, model_name="simple"), first, second)
        plain = {
            "inputs": [
                {"name": name, "shape": [2, 16], "datatype": "INT32", "data": array.ravel().tolist()}
                for name, array in tensors
            ]
        }
        check(await client.infer(address, plain, model_name="simple"), first, second)


async def case_requested_outputs_in_order_each_in_its_own_form(address: str) -> None:
    async with client_of("v2") as client:
        first, second = pair(2, seed=6)
        for binary in (True, False):
            asked = [RequestedOutput("OUTPUT1", {"binary_data": binary}), RequestedOutput("OUTPUT0")]
            request = asking("simple", given(first), given(second, "INPUT1"), request_outputs=asked)
            headers: dict[str, str] = {}
            response = await client.infer(address, request, model_name="simple", response_headers=headers)
            check(response, first, second)
            expect([output.name for output in response.outputs], ["OUTPUT1", "OUTPUT0"], "the outputs")
            expect("inference-header-content-length" in headers, binary, "the header of binary outputs")


async def case_all_outputs_binary_unless_one_says_otherwise(address: str) -> None:
    async with client_of("v2") as client:
        first, second = pair(2, seed=7)
        asked = [RequestedOutput("OUTPUT0", {"binary_data": False}), RequestedOutput("OUTPUT1")]
        request = asking(
            "simple",
            given(first),
            given(second, "INPUT1"),
            parameters={"binary_data_output": True},
            request_outputs=asked,
        )
        headers: dict[str, str] = {}
        check(await client.infer(address, request, model_name="simple", response_headers=headers), first, second)
        behind_json = int(headers["content-length"]) - int(headers["inference-header-content-length"])
        expect(behind_json, second.nbytes, "the bytes of what is binary")


async def case_request_ids_are_returned(address: str) -> None:
    async with client_of("v2") as client:
        request = asking("simple", given(pair()[0]), given(pair()[1], "INPUT1"), request_id="mine")
        expect((await client.infer(address, request, model_name="simple")).id, "mine", "the id")


async def case_half_precision_is_binary_both_ways(address: str) -> None:
    async with client_of("v2") as client:
        array = np.array([[0.5, -2, 6e-8, 30000]], np.float16)
        for parameters in ({"binary_data_output": True}, None):
            request = asking("simple_fp16", given(array), parameters=parameters)
            response = await client.infer(address, request, model_name="simple_fp16")
            expect_array(array_of(response, "OUTPUT0"), array + array, f"OUTPUT0 with {parameters}")


async def case_nan_and_infinity_are_kept_in_binary(address: str) -> None:
    async with client_of("v2") as client:
        array = np.array([[np.nan, np.inf, -np.inf, -0.0]], np.float32)
        request = asking("simple_fp32", given(array), parameters={"binary_data_output": True})
        response = await client.infer(address, request, model_name="simple_fp32")
        expect_array(array_of(response, "OUTPUT0"), array, "OUTPUT0")


async def case_strings(address: str) -> None:
    async with client_of("v2") as client:
        for binary in (True, False):
            for parameters in ({"binary_data_output": True}, None):
                request = asking("simple_identity", given(WORDS, binary=binary), parameters=parameters)
                response = await client.infer(address, request, model_name="simple_identity")
                expect(as_words(array_of(response, "OUTPUT0")), WORDS.ravel().tolist(), "OUTPUT0")
        first, second = pair(2)
        request = asking("simple_string", given(as_text(first)), given(as_text(second), "INPUT1", binary=False))
        response = await client.infer(address, request, model_name="simple_string")
        expect(as_words(array_of(response, "OUTPUT0")), as_words(as_text(first + second)), "OUTPUT0")


async def case_many_at_once_answer_their_own_inputs(address: str) -> None:
    async with client_of("v2") as client:

        async def ask(seed: int) -> None:
            first, second = pair(1 + seed % 3, seed)
            request = asking("simple", given(first, "INPUT0", seed % 2 == 0), given(second, "INPUT1"))
            check(await client.infer(address, request, model_name="simple"), first, second)

        await asyncio.gather(*(ask(seed) for seed in range(64)))


async def case_an_error_has_our_text_and_status(address: str) -> None:
    async with client_of("v2") as client:
        error = await refusal(client.infer(address, asking("simple", given(pair()[0])), model_name="simple"))
        expect_words(str(error), ["missing input", "INPUT1", "400"], "the error")
        error = await refusal(client.infer(address, asking("absent", given(pair()[0])), model_name="absent"))
        expect_words(str(error), ["no model 'absent'", "404"], "the error")


async def case_v1_health(address: str) -> None:
    async with client_of("v1") as client:
        expect(await client.is_server_live(address), True, "live")
        expect(await client.is_model_ready(address, "simple"), True, "model ready")
        expect((await refusal(client.is_model_ready(address, "absent"))).response.status_code, 404, "the status")


async def case_v1_predicts(address: str) -> None:
    async with client_of("v1") as client:
        rows = [[0.5, -2, 3, 1e6], [1, 2, 3, 4]]
        answer = await client.infer(address, {"instances": rows}, model_name="simple_fp32")
        expect(answer["predictions"], rows, "the predictions")
        first, second = pair(2)
        instances = [{"INPUT0": a, "INPUT1": b} for a, b in zip(first.tolist(), second.tolist(), strict=True)]
        predictions = (await client.infer(address, {"instances": instances}, model_name="simple"))["predictions"]
        expect([one["OUTPUT0"] for one in predictions], (first + second).tolist(), "OUTPUT0")
        expect([one["OUTPUT1"] for one in predictions], (first - second).tolist(), "OUTPUT1")


async def case_v1_errors_have_our_text_and_status(address: str) -> None:
    async with client_of("v1") as client:
        error = await refusal(client.infer(address, {"instances": [[1, 2]]}, model_name="simple_fp32"))
        expect_words(str(error), ["instances", "400"], "the error")
        error = await refusal(client.infer(address, {"instances": [[1]]}, model_name="absent"))
        expect_words(str(error), ["no model 'absent'", "404"], "the error")
        error = await refusal(client.explain(address, "simple", {"instances": [[1]]}))
        expect(error.response.headers["content-type"], "application/json", "the type of the refusal")


async def case_a_name_that_is_not_plain(address: str) -> None:
    """The client puts the name into the path as it is, so what a URL gives a meaning is encoded by the caller."""
    async with client_of("v2") as client:
        name = SPELT.replace("%", "%25").replace("#", "%23").replace("?", "%3F")
        expect(await client.is_model_ready(address, name), True, "ready")


if __name__ == "__main__":
    main(globals())
