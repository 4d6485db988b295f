"""Backbones and segmentation networks, each with the spec that builds it, and the readers of
published weights.

A backbone has ``trunk`` (frozen, cacheable), ``tail`` (trained), ``out_channels`` and ``stride``.
Specs name networks; stages import none of them.
"""
