"""The paper's method alone: the GPP layer, erasing as a triplet, losses, the classifier.

It knows torch and `engine`.  Rivals, studies and notebooks import it; it imports none of them.
"""
