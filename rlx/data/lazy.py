"""A field that is built when it is first asked for."""

from collections.abc import Callable

from torch import Tensor


class Lazy:
    """A tensor that is built when it is first asked for, and then kept.

    Put one in place of a tensor in a `DictTensor` or `TemporalDictTensor`: for a field that is dear to build, or that
    would store the same numbers twice. Operations on the whole (rows, `to`, `cat`, ...) make new lazy fields out of
    lazy ones; asking for the field by its key builds it.

    The function runs once at most, however many fields were derived from this one. It must not read data that changes
    between its making and its first use.
    """

    __slots__ = ("_function", "_value")

    def __init__(self, function: Callable[[], Tensor]) -> None:
        """Make a lazy tensor.

        Args:
            function: takes nothing and returns the tensor.
        """
        self._function: Callable[[], Tensor] | None = function
        self._value: Tensor | None = None

    @property
    def is_built(self) -> bool:
        """Return whether the tensor exists already."""
        return self._function is None

    def build(self) -> Tensor:
        """Return the tensor; the first call builds it and forgets the function and all that it holds."""
        value = self._value
        if value is None:
            assert self._function is not None
            value = self._value = self._function()
            self._function = None
        return value

    def map(self, function: Callable[[Tensor], Tensor]) -> "Lazy":
        """Return the lazy tensor `function(this tensor)`."""
        return Lazy(lambda: function(self.build()))

    def __repr__(self) -> str:
        return "Lazy(built)" if self.is_built else "Lazy(not built)"


Field = Tensor | Lazy
