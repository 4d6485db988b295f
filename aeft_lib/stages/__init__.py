"""The stage store, and a file for each stage: a function from a spec and artefacts to a folder.

Stages import no member of `paper`, `rivals`, `networks` or a data set: the specs bring them, and
the key hashes the code that they name.
"""
