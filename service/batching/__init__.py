"""Where frontends and engines meet: rows in shared memory, slot numbers over a socket, and the rule that makes batches.

    arena.py    the rows: one memfd mapping per model version
    strings.py  BYTES elements as bytes
    link.py     the socket: slot numbers and model events, as fixed-size records
    policy.py   which waiting items run next, and how many together
    claim.py    one request's hold on its slots
client.py   the frontend's side: claim, commit, await, release

Imports neither side: no onnxruntime here, and no HTTP.
"""
