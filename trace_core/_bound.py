"""A bundle as the method of an object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trace_core.bundle import Bundle
    from trace_core.code import CodeParameter
    from trace_core.parameter import Parameter


class BoundBundle:
    """A bundle as the method of one object."""

    __slots__ = ("__self__", "_bundle")

    def __init__(self, bundle: Bundle, instance: object) -> None:
        self._bundle = bundle
        self.__self__ = instance

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        bundle = self._bundle
        code = bundle.code_of(self.__self__) if bundle.trainable else None
        return bundle._run((self.__self__, *args), kwargs, code)

    @property
    def code(self) -> CodeParameter:
        """This object's own code parameter. Raises SourceError if the method is not trainable."""
        return self._bundle.code_of(self.__self__) if self._bundle.trainable else self._bundle.code

    def parameters(self) -> list[Parameter]:
        """The code parameter of this object, if trainable."""
        return [self.code] if self._bundle.trainable else []

    def __getattr__(self, attribute: str) -> Any:
        if attribute in ("_bundle", "__self__"):  # while being copied or unpickled
            raise AttributeError(attribute)
        return getattr(self._bundle, attribute)

    @property
    def __signature__(self) -> Any:
        """Without ``self``, for inspect."""
        signature = self._bundle.signature
        return None if signature is None else signature.replace(parameters=list(signature.parameters.values())[1:])

    def __reduce__(self) -> Any:
        return getattr, (self.__self__, self._bundle.__name__)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BoundBundle) and other._bundle is self._bundle and other.__self__ is self.__self__

    def __hash__(self) -> int:
        return hash((id(self._bundle), id(self.__self__)))

    def __repr__(self) -> str:
        return f"<bundle {self._bundle.name} of {type(self.__self__).__name__}>"
