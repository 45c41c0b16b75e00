"""The paper's claim about epochs, put to the test: in what part of MAE's epochs, and of its compute, is CoMA as good?

`variants` says what is compared, `images` holds the data, `runs` trains and scores, `report` draws conclusions.
"""
