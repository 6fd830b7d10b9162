"""Vector files of other programs, read and written: one module a format.

Each format's module turns a file into :class:`LayerDirections` and back; layers are zero-based block indices there
whatever the file counts. Nothing here unpickles: ``.pt`` files are read with ``weights_only=True``.
"""
