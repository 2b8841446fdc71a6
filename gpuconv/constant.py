"""Arrays that never change: what is worked out of one of them can be kept as long as it lives.

That an array is read-only says nothing: it may be a view of one that is not, and can be made
writeable again. Here are those that `gpuconv.nn.fold` made for itself and shows to nobody else.
"""

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

Array = Any
MOST = 4  # things kept of an array, the latest used; each plan of a kernel may want its own


class Constants:
    """What is kept of each constant array, by what it is for."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.known: dict[int, tuple[weakref.ref[Any], OrderedDict[int, Any]]] = {}

    def add(self, array: Array) -> Array:
        """`array`, from now on a constant, and read-only where the library has that."""
        if hasattr(array.flags, "writeable"):
            array.flags.writeable = False
        gone = partial(self._forget, id(array))
        with self.lock:
            self.known[id(array)] = weakref.ref(array, gone), OrderedDict()
        return array

    def derived(self, array: Array, purpose: Any, make: Callable[[Array], Any]) -> Any:
        """make(array), kept for `purpose`, an object that lives as long; None if no constant."""
        entry = self.known.get(id(array))
        if entry is None or entry[0]() is not array:
            return None
        kept = entry[1]
        with self.lock:
            found = kept.get(id(purpose))
            if found is not None:
                kept.move_to_end(id(purpose))
                return found[1]
        # Without the lock: it takes long, and other locks. Of two threads' the first one's is kept.
        made = purpose, make(array)
        with self.lock:
            found = kept.setdefault(id(purpose), made)
            while len(kept) > MOST:
                kept.popitem(last=False)
        return found[1]

    def release(self) -> None:
        """Forget what was worked out; it is made again when it is needed."""
        with self.lock:
            for _, kept in list(self.known.values()):  # arrays end meanwhile, in any thread
                kept.clear()

    def renew(self) -> None:
        """In a forked child: a lock of its own."""
        self.lock = threading.RLock()

    def _forget(self, number: int, _: Any) -> None:
        self.known.pop(number, None)


CONSTANTS = Constants()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: CONSTANTS.lock.acquire(),
        after_in_parent=lambda: CONSTANTS.lock.release(),
        after_in_child=CONSTANTS.renew,
    )
