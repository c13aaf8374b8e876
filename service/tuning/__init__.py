"""`python -m service tune`: finds out under real load how a model is best run on this machine within a latency.

    command  the sub-command: what it refuses, what it prints, what it leaves behind
    search   which set-ups are tried with how many clients, and which is chosen; no I/O, no clock of its own
    trial    a real server with one model for each set-up, and the client beside it
    load     the client: a process of its own
    report   the table, the plot in the terminal and the SVG

What it leaves behind is read by the engine, so it is declared there: service/engine/tuned.py.
"""
