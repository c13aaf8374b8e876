"""tritonclient.http: the flows of its examples, every way a tensor can travel, and what is refused."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.request import Request, urlopen

import ml_dtypes
import numpy as np
from cases import (
    SPELT,
    SPELT_VERSION,
    WORDS,
    Array,
    as_numbers,
    as_text,
    as_words,
    expect,
    expect_array,
    expect_pair,
    expect_words,
    main,
    pair,
)
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException, np_to_triton_dtype


def given(array: Array, name: str = "INPUT0", binary: bool = True) -> InferInput:
    tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def both(first: Array, second: Array, binary: tuple[bool, bool] = (True, True)) -> list[InferInput]:
    return [given(first, "INPUT0", binary[0]), given(second, "INPUT1", binary[1])]


def wanted(*names: str, binary: bool = True) -> list[InferRequestedOutput]:
    return [InferRequestedOutput(name, binary_data=binary) for name in names]


def check(result: InferResult, first: Array, second: Array) -> None:
    expect_pair(first, second, result.as_numpy("OUTPUT0"), result.as_numpy("OUTPUT1"))


def refusal(call: Any, *arguments: Any, **options: Any) -> InferenceServerException:
    try:
        answer = call(*arguments, **options)
    except InferenceServerException as error:
        return error
    raise AssertionError(f"not refused; answered {answer}")


def case_inputs_and_outputs_are_binary_by_default(address: str) -> None:
    with InferenceServerClient(address) as client:
        first, second = pair(3)
        result = client.infer("simple", both(first, second))
        check(result, first, second)
        answer = result.get_response()
        expect((answer["model_name"], answer["model_version"]), ("simple", "1"), "the model")
        expect(
            [output["parameters"] for output in answer["outputs"]], [{"binary_data_size": 3 * 16 * 4}] * 2, "parameters"
        )


def case_json_both_ways(address: str) -> None:
    with InferenceServerClient(address) as client:
        first, second = pair(2, seed=1)
        result = client.infer(
            "simple", both(first, second, (False, False)), outputs=wanted("OUTPUT0", "OUTPUT1", binary=False)
        )
        check(result, first, second)
        expect(result.get_output("OUTPUT0")["data"], (first + second).ravel().tolist(), "the data of OUTPUT0")


def case_json_and_binary_mixed(address: str) -> None:
    with InferenceServerClient(address) as client:
        for n, inputs in enumerate([(True, False), (False, True), (True, True), (False, False)]):
            for outputs in ((True, False), (False, True)):
                first, second = pair(2, seed=n)
                asked = [InferRequestedOutput(f"OUTPUT{i}", binary_data=binary) for i, binary in enumerate(outputs)]
                result = client.infer("simple", both(first, second, inputs), outputs=asked)
                check(result, first, second)
                expect(["data" not in output for output in result.get_response()["outputs"]], list(outputs), "binary")


def case_outputs_come_in_the_order_asked_for(address: str) -> None:
    with InferenceServerClient(address) as client:
        first, second = pair(2)
        for names in (["OUTPUT1", "OUTPUT0"], ["OUTPUT0", "OUTPUT1"], ["OUTPUT1"]):
            result = client.infer("simple", both(first, second), outputs=wanted(*names))
            expect([output["name"] for output in result.get_response()["outputs"]], names, "the outputs")
            expect_array(result.as_numpy("OUTPUT1"), first - second, "OUTPUT1")


def case_inputs_come_in_any_order(address: str) -> None:
    with InferenceServerClient(address) as client:
        first, second = pair(2)
        check(client.infer("simple", both(first, second)[::-1]), first, second)


def case_async_requests_answer_their_own_inputs(address: str) -> None:
    with InferenceServerClient(address, concurrency=8) as client:
        pairs = [pair(1 + seed % 3, seed) for seed in range(64)]
        requests = [client.async_infer("simple", both(first, second)) for first, second in pairs]
        for request, (first, second) in zip(requests, pairs, strict=True):
            check(request.get_result(), first, second)


def case_an_async_error_arrives_with_its_result(address: str) -> None:
    with InferenceServerClient(address, concurrency=2) as client:
        request = client.async_infer("simple", [given(pair()[0])])
        expect_words(refusal(request.get_result).message(), ["INPUT1"], "the error")


def case_threads_with_a_client_each(address: str) -> None:
    def ask(seed: int) -> None:
        with InferenceServerClient(address) as client:
            for step in range(8):
                first, second = pair(1 + step % 2, seed * 100 + step)
                check(client.infer("simple", both(first, second)), first, second)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))


def case_strings(address: str) -> None:
    with InferenceServerClient(address) as client:
        first, second = pair(2, seed=3)
        for binary in (True, False):
            inputs = both(as_text(first), as_text(second), (binary, binary))
            result = client.infer("simple_string", inputs, outputs=wanted("OUTPUT0", "OUTPUT1", binary=binary))
            for name, expected in (("OUTPUT0", first + second), ("OUTPUT1", first - second)):
                expect_array(as_numbers(result.as_numpy(name)), expected, name)


def case_any_text_comes_back_as_it_was(address: str) -> None:
    with InferenceServerClient(address) as client:
        for binary_in in (True, False):
            for binary_out in (True, False):
                asked = wanted("OUTPUT0", binary=binary_out)
                result = client.infer("simple_identity", [given(WORDS, binary=binary_in)], outputs=asked)
                expect(as_words(result.as_numpy("OUTPUT0")), WORDS.ravel().tolist(), "OUTPUT0")


def case_bytes_that_are_no_text_are_refused(address: str) -> None:
    with InferenceServerClient(address) as client:
        error = refusal(client.infer, "simple_identity", [given(np.array([[b"\xff\xfe"]], np.object_))])
        expect_words(error.message(), ["INPUT0", "UTF-8"], "the error")
        expect(error.status(), "400", "the status")


def case_request_ids_are_returned(address: str) -> None:
    with InferenceServerClient(address) as client:
        for request_id in ("1", "an id", "é"):
            answer = client.infer("simple", both(*pair()), request_id=request_id).get_response()
            expect(answer["id"], request_id, "the id")
        expect("id" in client.infer("simple", both(*pair())).get_response(), False, "an id without one given")


def case_priority_timeout_and_parameters(address: str) -> None:
    with InferenceServerClient(address) as client:
        first, second = pair()
        options: list[dict[str, Any]] = [
            {"priority": 1},
            {"priority": 2, "timeout": 5_000_000},
            {"parameters": {"text": "x", "number": 3, "flag": True, "fraction": 0.5}},
            {"headers": {"X-Request-ID": "mine"}, "query_params": {"a": "b c", "d": [1, 2]}},
        ]
        for option in options:
            check(client.infer("simple", both(first, second), **option), first, second)
        expect_words(refusal(client.infer, "simple", both(first, second), timeout=-1).message(), ["timeout"], "error")


def case_requests_and_answers_are_compressed(address: str) -> None:
    encodings = (None, "gzip", "deflate")
    with InferenceServerClient(address) as client:
        for seed, (there, back) in enumerate((there, back) for there in encodings for back in encodings):
            first, second = pair(8, seed)
            for binary in (True, False):
                result = client.infer(
                    "simple",
                    both(first, second, (binary, binary)),
                    outputs=wanted("OUTPUT0", "OUTPUT1", binary=binary),
                    request_compression_algorithm=there,
                    response_compression_algorithm=back,
                )
                check(result, first, second)


def case_many_rows(address: str) -> None:
    with InferenceServerClient(address) as client:
        for binary in (True, False):
            first, second = pair(1000, seed=9)
            asked = wanted("OUTPUT0", "OUTPUT1", binary=binary)
            check(client.infer("simple", both(first, second, (binary, binary)), outputs=asked), first, second)


def case_input_objects_are_used_again(address: str) -> None:
    with InferenceServerClient(address) as client:
        inputs = both(*pair())
        for seed, binary in enumerate([True, False, True, True, False]):
            first, second = pair(1 + seed, seed)
            for tensor, array in zip(inputs, (first, second), strict=True):
                tensor.set_shape(list(array.shape))
                tensor.set_data_from_numpy(array, binary_data=binary)
            check(client.infer("simple", inputs), first, second)


def case_a_body_made_beforehand_over_another_transport(address: str) -> None:
    first, second = pair(200)
    body, json_length = InferenceServerClient.generate_request_body(both(first, second))
    for encoding in ("", "gzip", "deflate"):
        headers = {"Inference-Header-Content-Length": str(json_length), "Accept-Encoding": encoding}
        request = Request(f"http://{address}/v2/models/simple/infer", body, headers)
        with urlopen(request) as response:
            expect(response.headers["Content-Encoding"] or "", encoding, "the encoding")
            length = int(response.headers["Inference-Header-Content-Length"])
            check(
                InferenceServerClient.parse_response_body(
                    response.read(), header_length=length, content_encoding=encoding or None
                ),
                first,
                second,
            )


def case_nan_and_infinity_are_kept_in_binary(address: str) -> None:
    with InferenceServerClient(address) as client:
        array = np.array([[np.nan, np.inf, -np.inf, -0.0], [1e-45, 3.4e38, 0.1, -1]], np.float32)
        expect_array(client.infer("simple_fp32", [given(array)]).as_numpy("OUTPUT0"), array, "OUTPUT0")
        result = client.infer("simple_fp32", [given(array)], outputs=wanted("OUTPUT0", binary=False))
        expect_array(np.isfinite(result.as_numpy("OUTPUT0")), np.isfinite(array), "which numbers JSON keeps")


def case_half_precision(address: str) -> None:
    with InferenceServerClient(address) as client:
        array = np.array([[0.5, -2, 6e-8, 30000], [np.inf, 0.1, 1, 2]], np.float16)
        expect_array(client.infer("simple_fp16", [given(array)]).as_numpy("OUTPUT0"), array + array, "OUTPUT0")
        finite = array[:1]
        result = client.infer("simple_fp16", [given(finite, binary=False)], outputs=wanted("OUTPUT0", binary=False))
        expect_array(result.as_numpy("OUTPUT0"), finite + finite, "OUTPUT0 over JSON")


def case_bfloat16_is_binary_only(address: str) -> None:
    with InferenceServerClient(address) as client:
        array = np.array([[0.5, -2, 3e38, 1.0078125]], ml_dtypes.bfloat16)
        expect_array(client.infer("simple_bf16", [given(array)]).as_numpy("OUTPUT0"), array, "OUTPUT0")
        error = refusal(client.infer, "simple_bf16", [given(array)], outputs=wanted("OUTPUT0", binary=False))
        expect_words(error.message(), ["OUTPUT0", "BF16", "binary_data"], "the error")


def case_no_rows_are_answered_by_none(address: str) -> None:
    none = np.zeros((0, 16), np.int32)
    with InferenceServerClient(address) as client:
        for binary in (True, False):
            asked = wanted("OUTPUT0", "OUTPUT1", binary=binary)
            check(client.infer("simple", both(none, none, (binary, binary)), outputs=asked), none, none)
        error = refusal(client.infer, "simple", both(none, pair()[1]))
        expect_words(error.message(), ["INPUT0", "INPUT1"], "the error")
        expect(error.status(), "400", "the status")


def case_a_name_that_is_percent_encoded(address: str) -> None:
    with InferenceServerClient(address) as client:
        first, second = pair(2)
        for version in ("", SPELT_VERSION):
            expect(client.is_model_ready(SPELT, version), True, "ready")
            expect(client.get_model_metadata(SPELT, version)["name"], SPELT, "the name")
            result = client.infer(SPELT, both(first, second), model_version=version)
            check(result, first, second)
            expect(result.get_response()["model_version"], SPELT_VERSION, "the version")


def case_what_does_not_fit_is_refused_with_our_text(address: str) -> None:
    first, second = pair()
    wrong: list[tuple[list[InferInput], list[str]]] = [
        ([given(first)], ["missing input", "INPUT1"]),
        ([*both(first, second), given(first, "INPUT2")], ["INPUT2"]),
        ([given(first), given(first)], ["INPUT0", "twice"]),
        (both(first[:, :15], second), ["INPUT0", "[1, 15]"]),
        (both(first.astype(np.float32), second), ["INPUT0", "FP32", "INT32"]),
        (both(np.repeat(first, 2, axis=0), second), ["first dimensions"]),
    ]
    with InferenceServerClient(address) as client:
        for inputs, words in wrong:
            error = refusal(client.infer, "simple", inputs)
            expect_words(error.message(), words, "the error")
            expect(error.status(), "400", "the status")
        error = refusal(client.infer, "simple", both(first, second), outputs=wanted("OUTPUT9"))
        expect_words(error.message(), ["OUTPUT9", "OUTPUT0"], "the error")


def case_an_unknown_model_or_version_is_refused(address: str) -> None:
    with InferenceServerClient(address) as client:
        for name, version, words in (("absent", "", ["absent"]), ("simple", "7", ["simple", "7", "1"])):
            for call in (client.infer, client.get_model_metadata, client.get_model_config):
                arguments = [both(*pair())] if call == client.infer else []
                error = refusal(call, name, *arguments, model_version=version)
                expect_words(error.message(), words, f"the error of {call.__name__}")
                expect(error.status(), "404", f"the status of {call.__name__}")


if __name__ == "__main__":
    main(globals())
