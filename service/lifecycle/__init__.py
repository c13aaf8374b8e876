"""Which versions are served, and which of them answers: the controller, and what it tells engines and frontends.

messages.py     what goes between the controller and the others
routing.py      aliases, split, shadow and guard of a model
"""
