"""Methods that are not the paper's, a file each: numbers, quirks, verbs (`stages.method.Method`).

Rivals may read all rooms below `studies`; what they share lives in `parts`.  They never import each
other; no stage imports them.
"""
