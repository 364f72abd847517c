"""Under pytest the notebooks compare their figures' data with the published ones, and write none."""

import os

os.environ.setdefault("SOKMERGE_FIGURES", "verify")
