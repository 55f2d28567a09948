"""Small kernels in C for passes over memory that nothing else here fuses; everything works without them.

They are compiled when the package is built (``hatch_build.py``) where there is a compiler for C, and loaded by
``ctypes``. ``BRAMBLE_NATIVE=0`` leaves them out, then or now.
"""
