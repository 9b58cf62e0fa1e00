"""Formats of data sets, one a file: `load(*, split, ...) -> Source`.

A module is found by its name (`data.name=coco`); to add a format, add a file.
"""
