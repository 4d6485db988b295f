"""Backbones and segmentation networks, each with its spec, and readers of published weights.

A backbone has ``trunk`` (frozen, cacheable), ``tail`` (trained), ``out_channels`` and ``stride``.
Specs name networks; stages import none of them.
"""
