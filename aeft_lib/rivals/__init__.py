"""One file for each method that is not the paper's: its numbers, its quirks, its four verbs
(`stages.method.Method`).

Rivals may read everything below `studies`; they never import each other, and no stage imports them.
"""
