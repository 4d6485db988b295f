"""Studies as data: profiles, rows, the catalogue, their run, and the report on their results.

A study is rows x repeats.  Notebooks and the command line import it; no room below does.
"""
