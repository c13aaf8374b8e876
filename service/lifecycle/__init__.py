"""Which versions are served, and which of them answers: the controller, and what it tells engines and frontends.

messages.py     what goes between the controller and the others
routing.py      aliases, split, shadow and guard of a model
remote.py       a repository that is a URL, in a folder; remote_source.py: the URL; remote_start.py: before a start
"""
