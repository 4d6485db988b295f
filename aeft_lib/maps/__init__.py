"""What is made of class activation maps: merged over scales, stored, turned into labels, scored,
submitted.

It knows tensors and files and nothing of networks, stages or data sets, so everybody may import it.
"""
