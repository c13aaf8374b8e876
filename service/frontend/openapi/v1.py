"""The operations of /v1/models/…:verb, which take the short way too."""

from litestar.openapi.spec import (
    OpenAPIMediaType,
    OpenAPIResponse,
    Operation,
    Parameter,
    PathItem,
    Reference,
    RequestBody,
    Schema,
)
from litestar.openapi.spec.enums import OpenAPIType

from service.frontend.openapi.answers import error_responses
from service.frontend.openapi.operations import NAME, PREDICTION_ERRORS, VERSION, VERSION_HEADER

_ANY = Schema()
_FEATURES = Schema(type=OpenAPIType.OBJECT, description="A value for each input, or for each of its named columns.")
_SIGNATURE = Schema(type=OpenAPIType.STRING, enum=["serving_default"], description="There is the one.")


def _array(items: Schema, min_items: int | None = None) -> Schema:
    return Schema(type=OpenAPIType.ARRAY, items=items, min_items=min_items)


def _object(required: list[str], **properties: Schema | Reference) -> Schema:
    return Schema(type=OpenAPIType.OBJECT, required=required, properties=properties)


_BY_ROW = _object(["instances"], signature_name=_SIGNATURE, instances=_array(_ANY, min_items=1))
_BY_ROW.schema_not = Schema(required=["inputs"])
_BY_COLUMN = _object(["inputs"], signature_name=_SIGNATURE, inputs=_ANY)
_BY_COLUMN.schema_not = Schema(required=["instances"])

V1_SCHEMAS = {
    "V1PredictRequest": Schema(one_of=[_BY_ROW, _BY_COLUMN]),
    "V1PredictResponse": Schema(
        one_of=[_object(["predictions"], predictions=_array(_ANY)), _object(["outputs"], outputs=_ANY)],
        description="`predictions` of `instances`, `outputs` of `inputs`.",
    ),
    "V1ExamplesRequest": _object(
        ["examples"], signature_name=_SIGNATURE, context=_FEATURES, examples=_array(_FEATURES, min_items=1)
    ),
    "V1ClassifyResponse": _object(
        ["results"],
        results=Schema(
            type=OpenAPIType.ARRAY,
            items=_array(_array(_ANY)),
            description="For each example a pair of label and score for each label, in the model's order.",
        ),
    ),
    "V1RegressResponse": _object(["results"], results=_array(Schema(type=[OpenAPIType.NUMBER, OpenAPIType.NULL]))),
}


def v1_paths() -> dict[str, PathItem]:
    verbs = {
        "predict": (
            "TensorFlow Serving: tensors in, by row or by column; tensors out",
            "V1PredictRequest",
            "V1PredictResponse",
        ),
        "classify": (
            "TensorFlow Serving: examples in; every label's score out",
            "V1ExamplesRequest",
            "V1ClassifyResponse",
        ),
        "regress": ("TensorFlow Serving: examples in; a number for each out", "V1ExamplesRequest", "V1RegressResponse"),
    }
    places = {"": (NAME,), "/versions/{model_version}": (NAME, VERSION)}
    return {
        f"/v1/models/{{model_name}}{place}:{verb}": PathItem(
            post=_operation(f"V1{verb.title()}{'Version' if place else ''}", parameters, *described)
        )
        for verb, described in verbs.items()
        for place, parameters in places.items()
    }


def _operation(
    operation_id: str, parameters: tuple[Parameter, ...], summary: str, request: str, response: str
) -> Operation:
    return Operation(
        operation_id=operation_id,
        tags=["v1"],
        summary=summary,
        parameters=[*parameters],
        request_body=RequestBody(required=True, content={"application/json": _json(request)}),
        responses={
            "200": OpenAPIResponse(
                description="The answer.", headers={**VERSION_HEADER}, content={"application/json": _json(response)}
            ),
            **error_responses(*PREDICTION_ERRORS),
        },
    )


def _json(name: str) -> OpenAPIMediaType:
    return OpenAPIMediaType(schema=Reference(ref=f"#/components/schemas/{name}"))
