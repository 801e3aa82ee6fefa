"""Hand-written kernels. ``cpu/`` and ``gpu/`` hold one family each under the same file names;
``twins.py`` restates every kernel in numpy, ``layout.py`` the order of weights in memory,
``tiles.py`` the numbers that differ between processors."""
