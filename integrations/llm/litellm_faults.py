"""What litellm's errors mean. It reports an answer that it could not read as a failed server or a lost connection; what
really happened stands in the chain of causes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from trace_core.integrations.llm import errors
from trace_core.integrations.llm.faults import from_client_error, is_connection_fault, says_no_credit

if TYPE_CHECKING:
    import openai

# What reading a body that is no completion raises. A StopIteration is only the JSON decoder's own.
_READING = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
_CONVERSION = ("provider returned", "Invalid response object", "Unable to get json response")


def from_litellm_error(error: openai.APIError, clean: Callable[[str], str]) -> errors.LLMError:
    """Our error for one of litellm's. Raise it outside the ``except`` block, see ``from_client_error``."""
    text = clean(str(error)).partition("Traceback (most recent call last)")[0].strip()
    causes = list(_causes(error))
    names = {type(cause).__name__ for cause in causes}
    if "ContextWindowExceededError" in names:
        return errors.ContextTooLong(f"the prompt is too long for the model: {_short(text)}")
    if "ContentPolicyViolationError" in names:
        return errors.Refused(f"refused by the content filter: {_short(text)}")
    if "TooManyRedirects" in names:
        return errors.BadRequest("the server redirects in a circle: give the final base_url")
    found = from_client_error(error, clean)
    if isinstance(found, errors.RateLimited) and says_no_credit(text):
        return errors.QuotaExceeded(f"the account has no credit left: {_short(text)}", status=found.status)
    if isinstance(found, errors.Transient | errors.BadRequest) and _unreadable(causes, text):
        return errors.Malformed(f"the answer is no chat completion: {_short(text)}")
    found.args = (str(found.args[0]).partition("Traceback (most recent call last)")[0].strip(),)
    return found


def _causes(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _unreadable(causes: list[BaseException], text: str) -> bool:
    """Whether an answer had come when this failed: no status of a fault, no lost connection, but a reader's error."""
    if any(type(cause).__name__ == "HTTPStatusError" or is_connection_fault(cause) for cause in causes):
        return False
    if any(getattr(cause, "status_code", None) == 200 for cause in causes):
        return True
    ours = (cause for cause in causes if type(cause).__module__.partition(".")[0] in ("builtins", "json"))
    return any(isinstance(cause, _READING) for cause in ours) or any(words in text for words in _CONVERSION)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 400 else text[:400] + "…"
