"""tritonclient.http: health, metadata and the protocol's extensions."""

import json
from collections import Counter
from typing import Any

import numpy as np
from cases import LABELS, SPELT, SPELT_VERSION, as_words, classes, expect, expect_words, main, pair
from triton_http import both, check, given, refusal
from tritonclient.http import InferenceServerClient, InferRequestedOutput

EVERY_MODEL = [
    "simple",
    "simple_bf16",
    "simple_fp16",
    "simple_fp32",
    "simple_identity",
    "simple_labels",
    "simple_string",
]
COUNTED = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")


def case_health(address: str) -> None:
    with InferenceServerClient(address) as client:
        expect(client.is_server_live(), True, "live")
        expect(client.is_server_ready(), True, "ready")
        expect(client.is_model_ready("simple"), True, "model ready")
        expect(client.is_model_ready("simple", "1"), True, "version ready")
        expect(client.is_model_ready("simple", "2"), False, "a version that is not there")
        expect(client.is_model_ready("absent"), False, "a model that is not there")


def case_server_metadata(address: str) -> None:
    with InferenceServerClient(address) as client:
        metadata = client.get_server_metadata()
        expect(metadata["name"], "shoal", "the name")
        expect(bool(metadata["version"]), True, "a version")
        told = {"binary_tensor_data", "classification", "model_configuration", "schedule_policy", "statistics"}
        expect(told - set(metadata["extensions"]), set(), "the extensions that are not told")
        expect([name for name in metadata["extensions"] if "shared_memory" in name], [], "shared memory")


def case_model_metadata(address: str) -> None:
    tensors = [
        [{"name": f"{side}{i}", "datatype": "INT32", "shape": [-1, 16]} for i in (0, 1)] for side in ("INPUT", "OUTPUT")
    ]
    with InferenceServerClient(address) as client:
        for version in ("", "1"):
            metadata = client.get_model_metadata("simple", version)
            expect(metadata["name"], "simple", "the name")
            expect(metadata["versions"], ["1"], "the versions")
            expect(metadata["platform"], "onnxruntime_onnx", "the platform")
            expect([metadata["inputs"], metadata["outputs"]], tensors, "the tensors")


def case_model_config(address: str) -> None:
    with InferenceServerClient(address) as client:
        for version in ("", "1"):
            config = client.get_model_config("simple", version)
            expect(config["name"], "simple", "the name")
            expect(config["platform"], "onnxruntime_onnx", "the platform")
            expect(config["max_batch_size"] >= 1, True, "a batch size")
            expect([tensor["name"] for tensor in config["input"]], ["INPUT0", "INPUT1"], "the inputs")
            expect([tensor["name"] for tensor in config["output"]], ["OUTPUT0", "OUTPUT1"], "the outputs")
            for tensor in config["input"] + config["output"]:
                # Without the batch axis; int64 may be written as text, as protobuf's JSON has it.
                expect([int(axis) for axis in tensor["dims"]], [16], f"dims of {tensor['name']}")
                expect(tensor["data_type"], "TYPE_INT32", f"data_type of {tensor['name']}")
        expect(client.get_model_config("simple_string")["input"][0]["data_type"], "TYPE_STRING", "the type of BYTES")


def _statistics(client: InferenceServerClient, name: str, version: str = "") -> dict[str, Any]:
    (one,) = client.get_inference_statistics(name, version)["model_stats"]
    return one


def _batches_by_size(statistics: dict[str, Any]) -> Counter[int]:
    return Counter({batch["batch_size"]: batch["compute_infer"]["count"] for batch in statistics["batch_stats"]})


def case_statistics_count_requests_rows_and_batches(address: str) -> None:
    rows = (1, 2, 5)
    with InferenceServerClient(address) as client:
        before = _statistics(client, "simple_fp16")
        for n in rows:
            client.infer("simple_fp16", [given(np.ones((n, 4), np.float16))])
        after = _statistics(client, "simple_fp16", "1")
    expect((after["name"], after["version"]), ("simple_fp16", "1"), "the model")
    expect(after["inference_count"] - before["inference_count"], sum(rows), "rows")
    # Rows of one request may be shared by idle instances, so there are at least as many batches as requests.
    batches = after["execution_count"] - before["execution_count"]
    expect(len(rows) <= batches <= sum(rows), True, f"{batches} batches")
    sizes = _batches_by_size(after)
    sizes.subtract(_batches_by_size(before))
    expect(sum(sizes.values()), batches, "batches by size")
    expect(sum(size * count for size, count in sizes.items()), sum(rows), "rows by size of their batch")
    expect(after["last_inference"] > before["last_inference"], True, "a later time in ms")
    for name in COUNTED:
        expect(set(after["inference_stats"][name]), {"count", "ns"}, name)
    for name in ("success", "queue", "compute_infer"):
        there, then = (which["inference_stats"][name] for which in (after, before))
        expect(there["count"] > then["count"], True, f"{name} counted")
        expect(there["ns"] > then["ns"], True, f"{name} timed")
    for name in ("fail", "cache_hit", "cache_miss"):
        expect(after["inference_stats"][name]["count"], before["inference_stats"][name]["count"], name)
    expect(all(batch["batch_size"] >= 1 for batch in after["batch_stats"]), True, "batch sizes")


def case_statistics_of_every_model(address: str) -> None:
    with InferenceServerClient(address) as client:
        told = sorted((one["name"], one["version"]) for one in client.get_inference_statistics()["model_stats"])
        everyone = sorted([*((name, "1") for name in EVERY_MODEL), (SPELT, SPELT_VERSION)])
        expect(told, everyone, "the models")
        expect_words(refusal(client.get_inference_statistics, "absent").message(), ["absent"], "the error")


def case_the_repository_index(address: str) -> None:
    with InferenceServerClient(address) as client:
        index = client.get_model_repository_index()
        everyone = [*((name, "1") for name in EVERY_MODEL), (SPELT, SPELT_VERSION)]
        expect(
            sorted((entry["name"], entry["version"], entry["state"]) for entry in index),
            sorted((name, version, "READY") for name, version in everyone),
            "the index",
        )


def case_loading_and_unloading_are_refused(address: str) -> None:
    with InferenceServerClient(address) as client:
        loads: list[dict[str, Any]] = [
            {},
            {"config": json.dumps({"max_batch_size": 4})},
            {"config": "{}", "files": {"file:1/model.onnx": b"none"}},
        ]
        for options in loads:
            expect_words(
                refusal(client.load_model, "simple", **options).message(), ["cannot load", "simple"], "the error"
            )
        for options in ({}, {"unload_dependents": True}):
            expect_words(
                refusal(client.unload_model, SPELT, **options).message(), ["cannot unload", SPELT], "the error"
            )
        expect(client.is_model_ready("simple"), True, "ready afterwards")


def case_settings_can_be_read(address: str) -> None:
    with InferenceServerClient(address) as client:
        expect("log_info" in client.get_log_settings(), True, "log_info")
        for name in (None, "simple"):
            expect("trace_level" in client.get_trace_settings(name), True, "trace_level")


def case_shared_memory_is_refused_with_a_text(address: str) -> None:
    with InferenceServerClient(address) as client:
        calls: list[tuple[Any, tuple[Any, ...]]] = [
            (client.get_system_shared_memory_status, ()),
            (client.register_system_shared_memory, ("region", "/key", 64)),
            (client.get_cuda_shared_memory_status, ()),
        ]
        for call, arguments in calls:
            expect_words(refusal(call, *arguments).message(), ["shared memory"], f"the error of {call.__name__}")


def case_outputs_as_classes(address: str) -> None:
    with InferenceServerClient(address) as client:
        scores = np.array([[0.25, 0.5, 0.125], [3, -1, 3]], np.float32)
        for k, binary in ((1, True), (2, False), (3, True), (9, True)):
            asked = [InferRequestedOutput("OUTPUT0", binary_data=binary, class_count=k)]
            found = client.infer("simple_labels", [given(scores)], outputs=asked).as_numpy("OUTPUT0")
            expect(found.shape, (2, min(k, 3)), "the shape")
            expect(as_words(found), classes(scores, k, LABELS), "the classes")
        first, second = pair(2)
        asked = [InferRequestedOutput("OUTPUT1", class_count=2), InferRequestedOutput("OUTPUT0")]
        result = client.infer("simple", both(first, second), outputs=asked)
        expect(as_words(result.as_numpy("OUTPUT1")), classes(first - second, 2), "the classes of numbers")
        expect(np.array_equal(result.as_numpy("OUTPUT0"), first + second), True, "OUTPUT0 beside them")
        check(client.infer("simple", both(first, second)), first, second)


if __name__ == "__main__":
    main(globals())
