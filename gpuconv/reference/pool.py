from typing import Any


class Pool:
    xp: Any
