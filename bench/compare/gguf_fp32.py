"""A GGUF file with every tensor as fp32: the weights that all the others read, for llama.cpp."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

_ALL_F32 = 0  # general.file_type


def fp32_copy(source: Path) -> Path:
    """Writes `<name>.fp32.gguf` beside `source`, once; needs the package `gguf`.

    The values are those of `gguf.dequantize`, from which the Hugging Face folder was made too.
    """
    from gguf import GGUFReader, GGUFValueType, GGUFWriter, dequantize

    path = source.with_suffix(".fp32.gguf")
    if path.is_file():
        return path
    reader = GGUFReader(source)
    architecture = str(reader.fields["general.architecture"].contents())
    work = path.with_suffix(f".{os.getpid()}")
    writer = GGUFWriter(work, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        is_array = field.types[0] == GGUFValueType.ARRAY
        kind = field.types[-1] if is_array else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=kind)
    writer.add_file_type(_ALL_F32)
    for tensor in reader.tensors:
        writer.add_tensor(
            tensor.name, dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(work, path)
    return path
