"""The controller: which versions are served, and which of them answers. A process of its own.

controller.py   the decisions, and their order
routes.py       what a request makes of a model's routing
peers.py        engines and frontends that are connected
gate.py         a version is tried before it is loaded
watch.py        the repository's changes
guarded.py      canaries that are taken back
"""
