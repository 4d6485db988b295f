"""The stage store, and one file for each stage: a plain function from a frozen spec and earlier
artefacts to a folder.

Stages import no member of `paper`, `rivals`, `networks` or a data set: the specs bring them, and
    the key hashes what they name.
"""
