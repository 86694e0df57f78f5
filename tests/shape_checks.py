"""beartype for the tests: an int is good where a float is asked for, as in Python at large."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
