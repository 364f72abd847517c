"""Under pytest a notebook compares the data of its figures with the published data."""

import os

os.environ.setdefault("SOKMERGE_FIGURES", "verify")
