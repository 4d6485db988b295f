"""Studies as data: profiles, rows, the catalogue, what runs them, and the report on what came out.

A study is rows x repeats.  Notebooks and the command line come in; nothing below imports a study.
"""
