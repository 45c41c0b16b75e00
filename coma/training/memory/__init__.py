"""Memory of a run on each device: what it takes by forecast, what there is, and what to do where it does not fit.

In reading order:

    state           weights, gradients and optimizer state, by arithmetic
    activations     what the forward pass keeps for the backward pass, measured without computing it
    available       what a process can get, on its GPU and of the machine's memory
    shortage        what a step says that runs out of memory
    fit             `--micro-batch-size auto`, and the refusal of a run that cannot fit
"""
