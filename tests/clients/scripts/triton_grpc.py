"""tritonclient.grpc: the flows of its examples, and the stream."""

import queue
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
from cases import (
    LABELS,
    SPELT,
    SPELT_VERSION,
    WORDS,
    Array,
    as_numbers,
    as_text,
    as_words,
    classes,
    expect,
    expect_array,
    expect_pair,
    expect_words,
    main,
    pair,
)
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

NOT_FOUND, INVALID = "StatusCode.NOT_FOUND", "StatusCode.INVALID_ARGUMENT"
PATIENCE_SECONDS = 20


def given(array: Array, name: str = "INPUT0") -> InferInput:
    tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor


def both(first: Array, second: Array) -> list[InferInput]:
    return [given(first, "INPUT0"), given(second, "INPUT1")]


def check(result: InferResult, first: Array, second: Array) -> None:
    expect_pair(first, second, result.as_numpy("OUTPUT0"), result.as_numpy("OUTPUT1"))


def refusal(call: Any, *arguments: Any, **options: Any) -> InferenceServerException:
    try:
        answer = call(*arguments, **options)
    except InferenceServerException as error:
        return error
    raise AssertionError(f"not refused; answered {answer}")


def case_health(address: str) -> None:
    with InferenceServerClient(address) as client:
        expect(client.is_server_live(), True, "live")
        expect(client.is_server_ready(), True, "ready")
        expect(client.is_model_ready("simple"), True, "model ready")
        expect(client.is_model_ready("simple", "1"), True, "version ready")


def case_metadata(address: str) -> None:
    with InferenceServerClient(address) as client:
        server = client.get_server_metadata()
        expect((server.name, bool(server.version)), ("shoal", True), "the server")
        for version in ("", SPELT_VERSION):
            metadata = client.get_model_metadata(SPELT, version, as_json=True)
            expect(metadata["name"], SPELT, "the name")
            expect(metadata["versions"], [SPELT_VERSION], "the versions")
            tensors = [(tensor["name"], tensor["datatype"], tensor["shape"]) for tensor in metadata["inputs"]]
            expect(tensors, [(f"INPUT{i}", "INT32", ["-1", "16"]) for i in (0, 1)], "the inputs")
            expect([tensor["name"] for tensor in metadata["outputs"]], ["OUTPUT0", "OUTPUT1"], "the outputs")


def case_one_after_another(address: str) -> None:
    with InferenceServerClient(address) as client:
        for seed in range(12):
            first, second = pair(1 + seed % 4, seed)
            result = client.infer("simple", both(first, second), request_id=str(seed))
            check(result, first, second)
            answer = result.get_response()
            expect((answer.model_name, answer.model_version, answer.id), ("simple", "1", str(seed)), "the answer")


def case_outputs_come_in_the_order_asked_for(address: str) -> None:
    with InferenceServerClient(address) as client:
        first, second = pair(2)
        for names in (["OUTPUT1", "OUTPUT0"], ["OUTPUT0", "OUTPUT1"], ["OUTPUT1"]):
            result = client.infer("simple", both(first, second), outputs=[InferRequestedOutput(name) for name in names])
            expect([output.name for output in result.get_response().outputs], names, "the outputs")
            expect_array(result.as_numpy("OUTPUT1"), first - second, "OUTPUT1")


def case_async_requests_answer_their_own_inputs(address: str) -> None:
    answers: queue.Queue[tuple[int, Any, Any]] = queue.Queue()
    with InferenceServerClient(address) as client:
        for seed in range(64):

            def put(result: Any, error: Any, seed: int = seed) -> None:
                answers.put((seed, result, error))

            client.async_infer("simple", both(*pair(1 + seed % 3, seed)), put)
        for _ in range(64):
            seed, result, error = answers.get(timeout=PATIENCE_SECONDS)
            expect(error, None, "the error")
            check(result, *pair(1 + seed % 3, seed))


def case_threads_on_one_channel(address: str) -> None:
    with InferenceServerClient(address) as client:

        def ask(seed: int) -> None:
            first, second = pair(1 + seed % 2, seed)
            check(client.infer("simple", both(first, second)), first, second)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(64)))


def case_a_stream_answers_in_order(address: str) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for seed in range(32):
            client.async_stream_infer("simple", both(*pair(1 + seed % 3, seed)), request_id=str(seed))
        for seed in range(32):
            result, error = answers.get(timeout=PATIENCE_SECONDS)
            expect(error, None, "the error")
            expect(result.get_response().id, str(seed), "the id")
            check(result, *pair(1 + seed % 3, seed))
        client.stop_stream()


def case_a_stream_goes_on_after_an_error(address: str) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for model, words in (("absent", ["absent"]), ("simple", ["missing input", "INPUT1"])):
            client.async_stream_infer(model, [given(pair()[0])])
            result, error = answers.get(timeout=PATIENCE_SECONDS)
            expect(result, None, "the result")
            expect_words(error.message(), words, "the error")
        client.async_stream_infer("simple", both(*pair(seed=4)))
        check(answers.get(timeout=PATIENCE_SECONDS)[0], *pair(seed=4))
        client.stop_stream()


def case_strings(address: str) -> None:
    with InferenceServerClient(address) as client:
        first, second = pair(2, seed=3)
        result = client.infer("simple_string", both(as_text(first), as_text(second)))
        for name, expected in (("OUTPUT0", first + second), ("OUTPUT1", first - second)):
            expect_array(as_numbers(result.as_numpy(name)), expected, name)
        result = client.infer("simple_identity", [given(WORDS)])
        expect(as_words(result.as_numpy("OUTPUT0")), WORDS.ravel().tolist(), "OUTPUT0")
        error = refusal(client.infer, "simple_identity", [given(np.array([[b"\xff\xfe"]], np.object_))])
        expect_words(error.message(), ["INPUT0", "UTF-8"], "the error")


def case_floats_of_every_width_are_kept(address: str) -> None:
    with InferenceServerClient(address) as client:
        array = np.array([[np.nan, np.inf, -np.inf, -0.0], [1e-45, 3.4e38, 0.1, -1]], np.float32)
        expect_array(client.infer("simple_fp32", [given(array)]).as_numpy("OUTPUT0"), array, "FP32")
        half = np.array([[0.5, -2, 6e-8, np.inf]], np.float16)
        expect_array(client.infer("simple_fp16", [given(half)]).as_numpy("OUTPUT0"), half + half, "FP16")
        brain = np.array([[0.5, -2, 3e38, 1.0078125]], ml_dtypes.bfloat16)
        expect_array(client.infer("simple_bf16", [given(brain)]).as_numpy("OUTPUT0"), brain, "BF16")


def case_outputs_as_classes(address: str) -> None:
    with InferenceServerClient(address) as client:
        scores = np.array([[0.25, 0.5, 0.125], [3, -1, 3]], np.float32)
        for k in (1, 2, 3, 9):
            asked = [InferRequestedOutput("OUTPUT0", class_count=k)]
            found = client.infer("simple_labels", [given(scores)], outputs=asked).as_numpy("OUTPUT0")
            expect(found.shape, (2, min(k, 3)), "the shape")
            expect(as_words(found), classes(scores, k, LABELS), "the classes")


def case_priority_timeout_parameters_and_compression(address: str) -> None:
    options: list[dict[str, Any]] = [
        {"priority": 1},
        {"priority": 2, "timeout": 5_000_000},
        {"parameters": {"text": "x", "number": 3, "flag": True, "fraction": 0.5}},
        {"headers": {"x-request-id": "mine"}},
        {"client_timeout": 10.0},
        {"compression_algorithm": "gzip"},
        {"compression_algorithm": "deflate"},
    ]
    with InferenceServerClient(address) as client:
        for seed, option in enumerate(options):
            first, second = pair(8, seed)
            check(client.infer("simple", both(first, second), **option), first, second)
        expect_words(refusal(client.infer, "simple", both(*pair()), timeout=-1).message(), ["timeout"], "the error")


def case_many_rows(address: str) -> None:
    with InferenceServerClient(address) as client:
        first, second = pair(1000, seed=9)
        check(client.infer("simple", both(first, second)), first, second)


def case_input_objects_are_used_again(address: str) -> None:
    with InferenceServerClient(address) as client:
        inputs = both(*pair())
        for seed in range(5):
            first, second = pair(1 + seed, seed)
            for tensor, array in zip(inputs, (first, second), strict=True):
                tensor.set_shape(list(array.shape))
                tensor.set_data_from_numpy(array)
            check(client.infer("simple", inputs), first, second)


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
            expect(error.status(), INVALID, "the status")
        error = refusal(client.infer, "simple", both(first, second), outputs=[InferRequestedOutput("OUTPUT9")])
        expect_words(error.message(), ["OUTPUT9", "OUTPUT0"], "the error")
        for name, version in (("absent", ""), ("simple", "7")):
            error = refusal(client.infer, name, both(first, second), model_version=version)
            expect((error.status(), name in error.message()), (NOT_FOUND, True), "an unknown model or version")
            expect(refusal(client.get_model_metadata, name, version).status(), NOT_FOUND, "the status")


def case_no_rows_are_answered_by_none(address: str) -> None:
    none = np.zeros((0, 16), np.int32)
    with InferenceServerClient(address) as client:
        check(client.infer("simple", both(none, none)), none, none)


def case_a_name_and_a_version(address: str) -> None:
    with InferenceServerClient(address) as client:
        first, second = pair(2)
        result = client.infer(SPELT, both(first, second), model_version=SPELT_VERSION)
        check(result, first, second)
        expect(result.get_response().model_version, SPELT_VERSION, "the version")


def case_the_repository(address: str) -> None:
    with InferenceServerClient(address) as client:
        index = client.get_model_repository_index()
        expect(
            {(entry.version, entry.state) for entry in index.models if entry.name == SPELT},
            {(SPELT_VERSION, "READY")},
            "the index",
        )
        expect_words(refusal(client.load_model, "simple").message(), ["cannot load", "simple"], "the error")
        expect_words(refusal(client.unload_model, "simple").message(), ["cannot unload", "simple"], "the error")
        expect(client.is_model_ready("simple"), True, "ready afterwards")


def case_config_and_statistics(address: str) -> None:
    with InferenceServerClient(address) as client:
        config = client.get_model_config("simple", as_json=True)["config"]
        expect([tensor["data_type"] for tensor in config["input"]], ["TYPE_INT32"] * 2, "the inputs")
        expect([tensor["dims"] for tensor in config["output"]], [["16"]] * 2, "the outputs")
        (before,) = client.get_inference_statistics("simple_fp16").model_stats
        client.infer("simple_fp16", [given(np.ones((3, 4), np.float16))])
        (after,) = client.get_inference_statistics("simple_fp16", "1").model_stats
        expect(after.inference_count - before.inference_count, 3, "rows")
        expect(after.execution_count - before.execution_count, 1, "batches")
        expect(after.inference_stats.success.count - before.inference_stats.success.count, 1, "requests")


if __name__ == "__main__":
    main(globals())
