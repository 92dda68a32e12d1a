"""One model in several formats, as GGUF files: the same tokenizer, the same layers."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np


def converted(source: Path, kind_name: str) -> Path:
    """Writes `<name>.<kind>.gguf` beside `source`, once; needs the package `gguf`.

    Args:
        source: a GGUF file.
        kind_name: what matrices become, such as "Q8_0", "BF16" or "F32"; vectors become F32.
    """
    from gguf import (
        GGMLQuantizationType,
        GGUFReader,
        GGUFValueType,
        GGUFWriter,
        LlamaFileType,
        dequantize,
        quantize,
    )

    path = source.with_suffix(f".{kind_name}.gguf")
    if path.is_file():
        return path
    kind = GGMLQuantizationType[kind_name]
    reader = GGUFReader(source)
    work = path.with_suffix(f".{os.getpid()}")
    writer = GGUFWriter(work, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    mostly = "ALL_F32" if kind_name == "F32" else f"MOSTLY_{kind_name}"
    writer.add_file_type(LlamaFileType[mostly])
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if len(tensor.shape) == 2 and kind != GGMLQuantizationType.F32:
            writer.add_tensor(tensor.name, quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(work, path)
    return path
