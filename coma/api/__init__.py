"""Python interface: `coma.pretrain` and the other commands as functions, whose keyword arguments are their options.

In reading order:

    functions       the functions, each of an options dataclass
    results         what they return, and how a notebook shows it
    keywords        keyword arguments, docstrings and errors of the functions

Type checkers and editors read coma/__init__.pyi, which tests/helpers/stub.py makes of them.
"""
