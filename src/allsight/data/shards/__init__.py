"""Data sets as tars with an index beside each: written, checked, and read from disks and servers.

Importing this loads nothing; see `packing` to write, `readers.webdataset` to read, `scale` to plan.
"""
