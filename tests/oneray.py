"""One Ray for the tests of a module, and what Ray warns of in itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest

# Ray's own: sockets and pipes that it leaves to the garbage collector, and what it deprecates in itself.
RAYS_WARNINGS = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@contextmanager
def one_ray_for(module: ModuleType) -> Iterator[None]:
    """Starts Ray once: whatever calls `module.start_ray` finds it running, and leaves it so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        ray = module.start_ray(2, None)
        shutdown = ray.shutdown
        patch.setattr(module, "start_ray", lambda num_workers, address: ray)
        patch.setattr(ray, "shutdown", lambda: None)
        yield
        shutdown()
