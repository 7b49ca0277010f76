"""The same model in another form: quantized tensors as F32, F16 or BF16, or in several files.

python benchmarks/rewrite.py MODEL PATH [--type F32|F16|BF16] [--split BYTES]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf import LlamaFileType as FileType
from gguf.quants import dequantize, quantize

_FILE_TYPES = {
    "F32": FileType.ALL_F32,
    "F16": FileType.MOSTLY_F16,
    "BF16": FileType.MOSTLY_BF16,
}
_WHOLE = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)


def rewrite(model: str, path: Path, *, kind: str = "", split_bytes: int = 0) -> list[Path]:
    """The files that were made; with `split_bytes` each holds so much of the weights at most, as gguf-split
    has it. Holds the weights in memory."""
    reader = GGUFReader(model)
    writer = GGUFWriter(path, reader.fields["general.architecture"].contents(), split_max_size=split_bytes)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        element = field.types[-1] if len(field.types) > 1 else None
        value = _FILE_TYPES[kind] if kind and name == "general.file_type" else field.contents()
        writer.add_key_value(name, value, field.types[0], element)
    for tensor in reader.tensors:
        if kind and tensor.tensor_type not in _WHOLE:
            data = quantize(dequantize(tensor.data, tensor.tensor_type), GGMLQuantizationType[kind])
            writer.add_tensor(tensor.name, data, raw_dtype=GGMLQuantizationType[kind])
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return list(writer.format_shard_names(path))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("path", type=Path)
    parser.add_argument("--type", choices=_FILE_TYPES, default="")
    parser.add_argument("--split", type=int, default=0, metavar="BYTES")
    arguments = parser.parse_args()
    for file in rewrite(arguments.model, arguments.path, kind=arguments.type, split_bytes=arguments.split):
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
