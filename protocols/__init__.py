"""Simulation protocols: physics only, no files, no terminal. Installed as ``dpa3sim.protocols``.

Each module has a frozen ``Settings`` and ``Result`` dataclass and a function ``run``.
"""
