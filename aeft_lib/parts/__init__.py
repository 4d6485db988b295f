"""What several methods are made of: losses on maps, a refinement head, a classifier that has one.

A part knows no method.  Methods, the paper's and rivals, and studies may come in.
"""
