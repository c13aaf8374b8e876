"""The frontend: knows HTTP, never onnxruntime.

app.py       the ASGI application: the short way for predictions, Litestar for everything else
http.py      one request: its body, its id, its answer
infer.py     POST /v2/models/…/infer      Open Inference Protocol, JSON and binary tensors
predict.py   POST /predict/…              images, forms, JSON, raw rows → labels
multipart_form.py, accept.py, predictions.py    its forms, what its client accepts, its answers
images.py    a request's images → rows, in a thread where they are large
decode.py    image bytes → uint8 rows
tensors.py   JSON numbers and bytes ↔ arrays, checked against the model
admin.py     health, metadata, metrics
protocol.py  uvicorn's protocol: one write an answer, our error body for bad syntax
openapi/     the document behind /docs
"""
