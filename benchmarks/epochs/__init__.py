"""Test of the paper's claim about epochs: in what part of MAE's epochs, and of its compute, is CoMA as good?

`variants` says what is compared, `images` holds the data, `runs` trains and scores, `report` draws conclusions.
"""
