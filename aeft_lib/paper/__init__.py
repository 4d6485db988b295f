"""The paper's method and nothing else: the GPP layer, erasing as a triplet, their losses, the
classifier that carries them.

It knows torch and the batch of `engine.samples`.  Rivals, studies and notebooks come in; it imports
none of them.
"""
