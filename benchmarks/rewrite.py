"""The same model in another form: every tensor in F32, to be larger, or in several files.

python benchmarks/rewrite.py MODEL PATH [--f32] [--split BYTES]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize

_ALL_F32 = 0  # llama.cpp's number for such a file


def rewrite(model: str, path: Path, *, f32: bool = False, split_bytes: int = 0) -> list[Path]:
    """The files that were made; with `split_bytes` each holds so much of the weights at most, as gguf-split
    has it. Holds the weights in memory."""
    reader = GGUFReader(model)
    writer = GGUFWriter(path, reader.fields["general.architecture"].contents(), split_max_size=split_bytes)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        element = field.types[-1] if len(field.types) > 1 else None
        value = _ALL_F32 if f32 and name == "general.file_type" else field.contents()
        writer.add_key_value(name, value, field.types[0], element)
    for tensor in reader.tensors:
        if f32 and tensor.tensor_type != GGMLQuantizationType.F32:
            writer.add_tensor(tensor.name, dequantize(tensor.data, tensor.tensor_type))
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
    parser.add_argument("--f32", action="store_true")
    parser.add_argument("--split", type=int, default=0, metavar="BYTES")
    arguments = parser.parse_args()
    for file in rewrite(arguments.model, arguments.path, f32=arguments.f32, split_bytes=arguments.split):
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
