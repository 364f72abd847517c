"""Studies: what takes longer than a chapter may, measured once and shipped as a table.

A study is a function of a seed that returns rows. Its results are committed as CSV beside a JSON
file that says how they were made, and one command makes them again::

    sokmerge results make bake-off --jobs 2

Each module of this package but :mod:`~sokmerge.studies.study`, and each package within it, declares
one study, ``STUDY``, whose name is its own with hyphens.
"""

from sokmerge.studies.study import Study, make, named, names, results

__all__ = ["Study", "make", "named", "names", "results"]
