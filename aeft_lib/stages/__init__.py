"""The stages: plain functions from a frozen spec and the artefacts of earlier stages to an artefact folder.

One module a stage, because the store's key hashes the modules a stage can reach: a change to evaluation costs no training.
"""
