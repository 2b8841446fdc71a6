from typing import Any


class Step:
    xp: Any
