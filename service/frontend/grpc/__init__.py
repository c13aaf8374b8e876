"""The Open Inference Protocol over gRPC, beside HTTP in every frontend: the same checks, batches and errors.

server.py            listens, and ends with the frontend
calls.py             health, metadata, the repository
infer.py             ModelInfer: messages to rows, outputs to messages
stream.py            ModelStreamInfer: many of those on one stream
codes.py             errors as gRPC has them
open_inference.proto and health.proto are the messages; `make proto` writes the `_pb2` modules from them

Imported only where `server.grpc_port` is set: grpcio and protobuf are an extra. Why so: docs/adr/0018.
"""
