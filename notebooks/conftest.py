"""Under pytest a notebook runs as `sokmerge chapters execute` runs it, but writes nothing.

It compares the data of its figures, computed again, with the published data.
"""

import os

from sokmerge.reader import execution, figures

os.environ.setdefault(figures.MODE, "verify")
for _name, _value in execution.ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
