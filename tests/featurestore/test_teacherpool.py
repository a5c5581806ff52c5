"""Teachers on Ray: the values of this process, also after a kill, and errors of workers told in one line."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from ray import cloudpickle

from featurestore import teacherpool
from featurestore.build import build_cache
from featurestore.cacheplan import CacheOptions, CachePlan, plan_cache
from featurestore.store import Store
from featurestore.teachercache import TeacherCache
from featurestore.teacherpool import open_pool
from featurestore.teachers.astteacher import load_ast
from featurestore.teachers.base import TeacherOutput
from featurestore.teachers.efficientat import EfficientATTeacher, MobileNet, load_efficientat
from featurestore.teachers.ensemble import Ensemble
from featurestore.verify import verify
from manifests.errors import InputError
from tests.featurestore.teachers import astfiles
from tests.featurestore.test_cli import SMALL
from tests.oneray import RAYS_WARNINGS, one_ray_for

pytestmark = RAYS_WARNINGS


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    """Starts Ray once for all tests here; open_pool finds it running and leaves it so."""
    with one_ray_for(teacherpool):
        yield


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save(MobileNet(SMALL._replace(classes=527)).state_dict(), tmp_path / "small.pt")
    return tmp_path / "small.pt"


def plan_of(store: Store, weights: Path, name: str) -> CachePlan:
    """Of a teacher at 32 kHz, with labels, and one at 16 kHz without, and with views."""
    ast = load_ast(astfiles.save(astfiles.made_up(), weights.parent))
    return plan_cache(store, Ensemble([load_efficientat(weights), ast]), name, CacheOptions(num_views=2))


def contents(store: Store, name: str) -> dict[str, bytes]:
    cache = TeacherCache(store, name)
    return {
        f"{output} {shard}": cache.read(output, shard).tobytes()
        for output in cache.outputs
        for shard in range(store.snapshot.num_shards)
    }


@pytest.mark.usefixtures("one_ray")
def test_ray_gives_the_values_of_this_process(make_store: Callable[..., Store], weights: Path) -> None:
    """Three clips of three shards have lost their sources: failures come in the order of the store."""
    store = make_store(("bark", "bell", "rain") * 4)
    gone = [int(row) for row in store.rows()[[1, 6, 9]]]
    for row in gone:
        (Path(store.sources(row).find(store.clip(row)).location) / store.clip(row).source).unlink()
    for name, num_workers in (("here", 0), ("there", 2)):
        with open_pool(num_workers, None, "cpu") as pool:
            result = build_cache(plan_of(store, weights, name), pool)
        assert result.failures == [f"{store.clip(row).key}: missing: no such file" for row in gone]
        assert result.num_rows == 8
    assert contents(store, "there") == contents(store, "here")
    cache = TeacherCache(store, "there")
    assert cache.outputs == ["embedding", "logits", "embedding_views", "logits_views"]
    assert np.isnan(cache.embeddings(np.array(gone))).all()
    assert np.isfinite(cache.gather("logits_views", np.setdiff1d(store.rows(), gone))).all()


@pytest.mark.usefixtures("one_ray")
def test_an_error_in_a_worker_is_one_line(store_copy: Path, weights: Path) -> None:
    store = Store(store_copy)
    plan = plan_of(store, weights, "both")
    (store_copy / store.file.sidecar_name(1)).unlink()
    with open_pool(2, None, "cpu") as pool, pytest.raises(InputError, match="lacks the sidecar of shard") as caught:
        build_cache(plan, pool)
    assert "\n" not in str(caught.value)


class Deadly(EfficientATTeacher):
    """Dies at the first clip that is not the probe's second of noise, as for lack of memory."""

    def embed(self, batch: torch.Tensor) -> TeacherOutput:
        if batch.shape[1] != 32_000:
            os._exit(9)
        return super().embed(batch)


@pytest.mark.usefixtures("one_ray")
def test_a_worker_that_dies_again_and_again_is_one_line(
    store_copy: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = load_efficientat(weights)
    teacher.__class__ = Deadly
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(teacherpool, "MAX_RETRIES", 0)
    plan = plan_cache(Store(store_copy), Ensemble([teacher]), "deadly", CacheOptions())
    with open_pool(1, None, "cpu") as pool, pytest.raises(InputError, match="a worker process died again") as caught:
        build_cache(plan, pool)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("one_ray")
def test_devices_on_ray() -> None:
    for device, message in (
        ("cuda:0", "names one device: give --workers 0"),
        ("cuda", "Ray knows of no GPU here"),
    ):
        with pytest.raises(InputError, match=message), open_pool(2, "local", device):
            pass
    with open_pool(1, None, "auto") as pool:
        assert pool.on_cuda == torch.cuda.is_available()


def test_killed_with_ray(store_copy: Path, weights: Path) -> None:
    """With SIGKILL as soon as the first chunk is there; without Ray, too, it goes on to the values of a whole run."""
    store = Store(store_copy)
    arguments = ["--model", "efficientat", "--checkpoint", str(weights), "--store", str(store_copy)]
    script = [str(Path(sys.executable).with_name("featurestore")), "build-teacher", *arguments]
    process = subprocess.Popen(
        [*script, "--workers", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        start_new_session=True,
    )
    try:
        folder, end = store_copy / "teachers/efficientat.zarr", time.monotonic() + 120
        while not (folder / "embedding/c/0/0").exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.002)
        process.kill()
        process.communicate(timeout=60)
    finally:
        # Ray's processes end by themselves when they miss their driver; this leaves none to other tests.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    done = [TeacherCache(store, "efficientat").has_shard(shard) for shard in range(5)]
    assert not all(done)
    kept = {shard: contents(store, "efficientat")[f"embedding {shard}"] for shard, whole in enumerate(done) if whole}
    for name in ("efficientat", "whole"):
        plan = plan_cache(store, Ensemble([load_efficientat(weights)]), name, CacheOptions())
        with open_pool(0, None, "cpu") as pool:
            assert build_cache(plan, pool).num_rows == 22
    resumed = contents(store, "efficientat")
    assert {shard: resumed[f"embedding {shard}"] for shard in kept} == kept
    assert contents(store, "whole") == resumed
    assert verify(store.location) == []
