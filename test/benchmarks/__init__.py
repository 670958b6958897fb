"""One `bench_<stage>.py` a stage; `make bench` runs them and prints one table."""


class LeftOut(Exception):
    """Raised by `rows` for what cannot be measured here; the message names the rows and says why.

    Rows that were yielded before it count.
    """
