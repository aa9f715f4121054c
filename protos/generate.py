"""Generate the Python stubs and the descriptor image from the protos.

    python protos/generate.py [--stubs DIR] [--image FILE]

``buf/validate/validate.proto``, which our protos import, is taken as a descriptor from the installed
``protovalidate`` package: the rules that are compiled are those of the library that checks them.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import grpc_tools
from google.protobuf import descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2
from grpc_tools import protoc
from protovalidate._gen.buf.validate import validate_pb

PROTOS = Path(__file__).resolve().parent
STUBS = PROTOS.parent / "clients" / "python" / "src"
WELL_KNOWN = Path(grpc_tools.__file__).parent / "_proto"
VALIDATE = "buf/validate/validate.proto"


def write_validate_descriptors(target: Path) -> None:
    """Write validate.proto and what it imports as a FileDescriptorSet."""
    files = descriptor_pb2.FileDescriptorSet()
    for module in (descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2):
        module.DESCRIPTOR.CopyToProto(files.file.add())
    files.file.add().ParseFromString(validate_pb.desc().proto.to_binary())
    target.write_bytes(files.SerializeToString(deterministic=True))


def compile_protos(*options: str, files: list[str], descriptors: Path) -> None:
    """Run protoc, or end the program with its error."""
    status = protoc.main(
        ["protoc", f"-I{PROTOS}", f"-I{WELL_KNOWN}", f"--descriptor_set_in={descriptors}", *options, *files]
    )
    if status != 0:
        sys.exit(f"protoc failed with status {status}")


def generate(stubs: Path, image: Path | None) -> None:
    """Write the stubs below ``stubs`` and the descriptor image, with comments, to ``image``."""
    ours = sorted(str(path.relative_to(PROTOS)) for path in (PROTOS / "contrafact").rglob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        descriptors = Path(folder) / "validate.binpb"
        write_validate_descriptors(descriptors)
        for package in ("contrafact/v1", "contrafact/engine", "buf"):
            shutil.rmtree(stubs / package, ignore_errors=True)
        python = [f"--python_out={stubs}", f"--mypy_out=quiet:{stubs}"]
        grpc = [f"--grpc_python_out={stubs}", f"--mypy_grpc_out=quiet:{stubs}"]
        compile_protos(*python, files=[VALIDATE], descriptors=descriptors)
        compile_protos(*python, *grpc, files=ours, descriptors=descriptors)
        for source in ours:  # protoc writes an empty service module for files without a service
            text = (PROTOS / source).read_text()
            if "\nservice " not in text:
                for suffix in ("_pb2_grpc.py", "_pb2_grpc.pyi"):
                    (stubs / source.replace(".proto", suffix)).unlink(missing_ok=True)
        if image is not None:
            image.parent.mkdir(parents=True, exist_ok=True)
            compile_protos(
                f"--descriptor_set_out={image}",
                "--include_imports",
                "--include_source_info",
                files=ours,
                descriptors=descriptors,
            )
    packages = {stubs / parent for source in [*ours, VALIDATE] for parent in Path(source).parents}
    for made in packages - {stubs, stubs / "contrafact"}:  # the latter is the SDK's own
        (made / "__init__.py").write_text("")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--stubs", type=Path, default=STUBS)
    parser.add_argument("--image", type=Path)
    arguments = parser.parse_args()
    generate(arguments.stubs, arguments.image)
