"""Event loops that do not speak of what Orbax leaves undone when one read or write has failed.

Its error is raised, and told. Others are under way then, and each would print a traceback.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_loops() -> Iterator[None]:
    """Within, new event loops of all threads are such."""
    policy = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(_Quiet())
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(policy)


class _Loop(asyncio.SelectorEventLoop):
    """An event loop to which one may speak when it is closed.

    Orbax closes its loop when one read has failed, and others are done later.
    """

    def call_soon_threadsafe(self, callback, *args, context=None):
        """Let the loop call a function, unless it has ended."""
        try:
            return super().call_soon_threadsafe(callback, *args, context=context)
        except RuntimeError:
            if not self.is_closed():
                raise
            return asyncio.Handle(callback, args, self, context)  # which nobody calls

    def call_exception_handler(self, context):
        """Log what nobody catches, but not the errors of those others."""
        if "never retrieved" not in context.get("message", ""):
            super().call_exception_handler(context)


class _Quiet(asyncio.DefaultEventLoopPolicy):
    """Makes such loops."""

    def new_event_loop(self):
        """A new loop."""
        return _Loop()
