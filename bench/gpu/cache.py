"""A cache of compiled kernels, made where there is time and carried to where there is a GPU.

    python -m bench.gpu.cache [--jobs 8]     # compiles what is missing, for this GPU or sm_90
    python -m bench.gpu.cache --check        # says whether kernels are found here, at once
    python -m bench.gpu.cache --dry-run      # a few kernels of the demo family, in a folder of /tmp

What is compiled is found by making the engines and cases of `bench.gpu` without a GPU
(`bench.gpu.engines`, `bench.gpu.kernel_cases`). `gpu_cache/` holds the list of them, and an archive
that is unpacked into the temporary folder, as Triton's cache. It fits where Python's minor version
and Triton are those that made it. Where it does not, the first command compiles all of it again, on
all cores.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench.lib import report
from bench.lib.options import command_parser

if TYPE_CHECKING:
    from rsd_kernels.aot.variant import Variant

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "gpu_cache"
MAX_BYTES = 25 * 10**6  # what can be carried beside the checkout
_ARCHIVE = "kernels.tar.xz"
_SLIM = (".cubin", ".json", ".so")


def check(folder: Path = FOLDER) -> dict[str, Any]:
    """Puts the cache in use, in this process and its children, and says whether it fits.

    Returns:
        fits: whether every kernel of the cache is found instead of compiled.
        triton_key, expected_key: hashes of this Triton and of the one that made the cache.
        kernels: how many are in the cache.
        missing: names of kernels, and of modules that launch them, that would be compiled.
    """
    from rsd_kernels.aot.launchers import missing_launchers

    key, manifest = _triton_key(), _read(folder)
    found: dict[str, Any] = {
        "fits": False, "triton_key": key, "expected_key": None, "kernels": 0, "missing": [],
    }  # fmt: skip
    if manifest is None:
        return found
    _use(folder)
    variants = _variants(folder)
    missing = {v.name for v in variants if not _is_cached(v, manifest["capability"])}
    missing |= set(missing_launchers(variants))
    fits = bool(variants) and not missing and key == manifest["triton_key"]
    return found | {
        "fits": fits, "expected_key": manifest["triton_key"], "kernels": len(variants),
        "missing": sorted(missing),
    }  # fmt: skip


def make(
    folder: Path, names: Sequence[str], capability: int, jobs: int, most: int | None = None
) -> dict[str, Any]:
    """Compiles what these engines and cases launch, as far as it is not in the folder.

    Args:
        folder: of the cache; what nothing launches any more is deleted from it.
        names: of `launches.SOURCES`.
        capability: 90 for sm_90.
        jobs: processes.
        most: kernels to compile, for tests.
    """
    from rsd_kernels.aot.launchers import launcher_folders, launcher_sources

    start = time.perf_counter()
    cache = _use(folder)
    os.environ["TRITON_STORE_BINARY_ONLY"] = "1"
    with _mapping(jobs) as run_all:
        variants = _enumerated(folder, names, run_all)[:most]
        listed = time.perf_counter()
        outcomes = list(run_all(_compile, variants, [capability] * len(variants)))
        outcomes += run_all(_build, [None, *launcher_sources(variants)])
    failed = [message for message in outcomes if message]
    wanted = {v.cache_folder(capability) for v in variants} | launcher_folders(variants)
    _pack(cache, wanted, folder)
    (folder / "variants.pickle").write_bytes(pickle.dumps(variants))
    manifest = {
        "triton_key": _triton_key(), "capability": capability, "sources": _sources(names),
        "python": sys.version.split()[0], "kernels": len(variants),
        "launchers": len(outcomes) - len(variants), "failed": failed,
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "seconds": {
            "list": round(listed - start, 1), "compile": round(time.perf_counter() - listed, 1),
        },
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


@contextmanager
def _mapping(jobs: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """`map`, by so many processes."""
    if jobs == 1:
        yield map
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield pool.map


def _enumerated(
    folder: Path, names: Sequence[str], run_all: Callable[..., Iterable[Any]]
) -> list[Variant]:
    """What the folder lists, if it was made from the same sources; else found anew."""
    manifest = _read(folder)
    if manifest and manifest["sources"] == _sources(names):
        return _variants(folder)
    found: dict[str, Variant] = {}
    for name, variants in zip(names, run_all(_list, names), strict=True):
        new = {variant.key: variant for variant in variants}
        print(f"{name}: {len(new)} kernels, {len(new.keys() - found.keys())} of them new")
        found |= new
    return list(found.values())


def _list(name: str) -> list[Variant]:
    """The variants of one source, each once."""
    from bench.gpu.launches import SOURCES
    from rsd_kernels.aot.variant import variant_of

    return list({v.key: v for v in map(variant_of, SOURCES[name]())}.values())


def _is_cached(variant: Variant, capability: int) -> bool:
    try:
        return variant.is_cached(capability)
    except (ImportError, AttributeError):  # the kernel has another name by now
        return False


def _compile(variant: Variant, capability: int) -> str:
    """Why it could not be compiled; empty if it was, or was there."""
    try:
        if not variant.is_cached(capability):
            variant.compile(capability)
    except Exception as error:
        return f"{variant.name}: {type(error).__name__}: {error}"
    return ""


def _build(source: str | None) -> str:
    """The same for a launcher, or, without a source, for the module that loads kernels."""
    from rsd_kernels.aot.launchers import build_driver_module, build_launcher

    try:
        build_driver_module() if source is None else build_launcher(source)
    except Exception as error:
        return f"launcher: {type(error).__name__}: {error}"
    return ""


def _use(folder: Path) -> Path:
    """Unpacks the archive, unless that was done, and makes it Triton's cache; returns its place."""
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    cache = Path(tempfile.gettempdir()).resolve() / f"rsd-kernels-{name}"
    archive, unpacked = folder / _ARCHIVE, cache / "unpacked"
    cache.mkdir(exist_ok=True)
    if archive.exists():
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        if not unpacked.exists() or unpacked.read_text() != digest:
            with tarfile.open(archive) as files:
                # Python 3.11.3 and older have no filters.
                files.extraction_filter = getattr(tarfile, "data_filter", lambda file, _: file)
                files.extractall(cache)
            _join_groups(cache)
            unpacked.write_text(digest)
    os.environ["TRITON_CACHE_DIR"] = str(cache)
    return cache


def _join_groups(cache: Path) -> None:
    """Triton wants the paths of the files of a kernel, which depend on where the cache lies."""
    for group in cache.glob("*/__grp__*.json"):
        paths = {path.name: str(path) for path in group.parent.iterdir() if path != group}
        group.write_text(json.dumps({"child_paths": paths}))


def _pack(cache: Path, wanted: set[str], folder: Path) -> None:
    """Deletes what no launch needs, and makes the archive."""
    for path in cache.glob("*/*"):
        if path.parent.name not in wanted or path.suffix not in _SLIM:
            path.unlink()
    for empty in cache.iterdir():
        if empty.is_dir() and not any(empty.iterdir()):
            empty.rmdir()
    _join_groups(cache)
    (cache / "unpacked").unlink(missing_ok=True)
    folder.mkdir(exist_ok=True)
    shutil.make_archive(str(folder / _ARCHIVE.removesuffix(".tar.xz")), "xztar", cache)


def _read(folder: Path) -> dict[str, Any] | None:
    manifest = folder / "manifest.json"
    return dict(json.loads(manifest.read_text())) if manifest.exists() else None


def _variants(folder: Path) -> list[Variant]:
    found: list[Variant] = pickle.loads((folder / "variants.pickle").read_bytes())
    return found


def _triton_key() -> str:
    from triton.runtime.cache import triton_key

    return hashlib.sha256(triton_key().encode()).hexdigest()


def _sources(names: Iterable[str]) -> str:
    """A hash of what the list of variants depends on."""
    found = hashlib.sha256(" ".join(names).encode())
    for folder in ("kernels/rsd_kernels", "rsd_engine", "bench"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()


def _capability() -> int:
    if not torch.cuda.is_available():
        return 90
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("gpu.cache", __doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the cache fits")
    parser.add_argument("--dry-run", action="store_true", help="a few kernels")
    parser.add_argument("--capability", type=int, help="90 for sm_90 (default: of the GPU, or 90)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    if options.check:
        found = check()
        report.print_json({"bench": "gpu.cache", **found})
        return 0 if found["fits"] else 1
    from bench.gpu.launches import SOURCES

    capability = options.capability or _capability()
    if options.dry_run:
        with tempfile.TemporaryDirectory() as folder:
            made = make(Path(folder), ["tiny"], capability, 1, most=3)
            found = check(Path(folder))
    else:
        names = [name for name in SOURCES if name != "tiny"]
        made, found = make(FOLDER, names, capability, options.jobs), check()
    return _tell(made, found)


def _tell(made: Mapping[str, Any], found: Mapping[str, Any]) -> int:
    for message in made["failed"]:
        print(f"failed: {message}")
    report.print_json({"bench": "gpu.cache", **made, "fits": found["fits"]})
    if made["bytes"] > MAX_BYTES:
        print(f"the cache has {made['bytes']} bytes; at most {MAX_BYTES} can be carried")
    return 0 if found["fits"] and not made["failed"] and made["bytes"] <= MAX_BYTES else 1


if __name__ == "__main__":
    raise SystemExit(main())
