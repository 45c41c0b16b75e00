"""What only a GPU can answer, in parts of a few minutes: `python -m benchmarks.gpu --list` names them.

    parts      what is asked, in the order in which it is worth knowing
    part       a part at work: its rows, its budget of time, its record on disk
    process    each part in a process of its own, ended when it overruns its limit
    machine    the machine and the versions that a record was made with
    images     images drawn for a machine that has no data
    report     the records as Markdown and plots

What measures: `suite`, `decoding`, `streams`, `steps`, `epochs` in their own process, `commands` and `curve` by the
`coma` command itself.
"""
