"""Bringing a data set to the disk, and the doctor who says what is wrong with what is there.

The command line comes in; no stage reads anything here.
"""
