"""The formats of exported policies: a module made into a file's bytes, and those run again by another engine."""

import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from rlx.errors import MissingPackageError
from rlx.tools.exported import ExportedPolicy, Tensors

Format = Literal["onnx", "torchscript"]
Arrays = dict[str, NDArray[Any]]
Run = Callable[[Arrays], Arrays]

_jit: Any = torch.jit  # typed in part only

METADATA = "rlx.json"
"""Where a TorchScript file keeps what an ONNX file keeps as its metadata: one of its extra files."""


def need(name: Format) -> None:
    """Import what a format needs, so that nothing is done in vain where that is not there.

    Raises:
        MissingPackageError: a package is not installed.
    """
    for package in ("onnx", "onnxscript", "onnxruntime") if name == "onnx" else ():
        _imported(package)


def to_bytes(name: Format, policy: ExportedPolicy, metadata: Mapping[str, Any]) -> bytes:
    """Return the content of a file that holds a policy.

    Args:
        name: the format.
        policy: what to export.
        metadata: JSON-ready; goes into the file.

    Raises:
        Exception: whatever torch cannot express.
    """
    with _quiet(), torch.no_grad():
        return (_to_onnx if name == "onnx" else _to_torchscript)(policy, metadata)


def opened(name: Format, content: bytes) -> Run:
    """Return what runs a file's content on arrays by name, without rlx."""
    if name == "torchscript":
        with _quiet():
            module = _jit.load(io.BytesIO(content))

        def run(inputs: Arrays) -> Arrays:
            with torch.no_grad():
                outputs: Tensors = module({key: torch.from_numpy(value) for key, value in inputs.items()})
            return {key: value.numpy() for key, value in outputs.items()}

        return run
    session = _imported("onnxruntime").InferenceSession(content, providers=["CPUExecutionProvider"])
    names: list[str] = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def _to_onnx(policy: ExportedPolicy, metadata: Mapping[str, Any]) -> bytes:
    """Return an ONNX model; the first dimension of all inputs and outputs is called `batch`."""
    batch = torch.export.Dim("batch")
    shapes = ({key: {0: batch} for key in policy.example},)
    graph = torch.export.export(policy, (policy.example,), dynamic_shapes=shapes, strict=False)
    inputs, outputs = list(policy.example), list(policy(policy.example))
    exported: Any = torch.onnx.export(
        graph, dynamo=True, verbose=False, input_names=inputs, output_names=outputs, dynamic_shapes=shapes
    )
    model = exported.model_proto
    for part in (model.graph, *model.graph.node, *model.graph.value_info):
        del part.metadata_props[:]  # the exporter's notes: which line of which file each came from
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    return model.SerializeToString()


def _to_torchscript(policy: ExportedPolicy, metadata: Mapping[str, Any]) -> bytes:
    """Return a TorchScript archive: one method, from named tensors to named tensors."""
    # What values decide is in the file as it is for the example: the check finds it out.
    traced = _jit.trace(policy, (policy.example,), strict=False, check_trace=False)
    file = io.BytesIO()
    _jit.save(_jit.freeze(traced), file, _extra_files={METADATA: json.dumps(metadata)})
    return file.getvalue()


def _imported(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingPackageError.of("rlx export", error.name or package, "export") from None


@contextmanager
def _quiet() -> Generator[None]:
    """Keep back what the exporters tell of themselves: deprecations, and packages for operators that are not here."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def as_array(value: torch.Tensor) -> NDArray[Any]:
    """Return a tensor as an array with memory of its own, in order."""
    return np.ascontiguousarray(value.numpy())
