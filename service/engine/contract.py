"""What a version's folder promises, held against it: before its model file is opened, and once it is.

    the manifest's signature, where keys are given ─► its name and version ─► digests ─► no other file ─► golden rows

A version without a manifest promises nothing; where signatures are required it is refused.
Whatever is wrong is an UnservableModel with the reason. Checked by tests/unit/test_contract.py.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from models.manifest import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    Golden,
    ImageInput,
    Manifest,
    ManifestError,
    check_files,
    check_identity,
    check_no_others,
    parse_manifest,
    read_beside,
    read_golden,
)
from service.engine.session import Session, UnservableModel


def read_contract(
    path: Path, name: str, version: str, trusted_keys: Mapping[str, bytes] | None
) -> tuple[Manifest | None, Golden | None]:
    """Of version `version` of `name` in the folder `path`; (None, None) where it has no manifest.

    trusted_keys   one of them must have signed; None: nobody need have
    Raises         UnservableModel
    """
    # lexists: a link that leads nowhere is a manifest that cannot be read, and no reason to ask for less.
    if not os.path.lexists(path / MANIFEST_FILE):
        if trusted_keys is not None:
            raise UnservableModel(f"{path / MANIFEST_FILE}: missing, and only signed versions are served")
        return None, None
    try:
        content = read_beside(path, MANIFEST_FILE)
        if trusted_keys is not None:
            from models.signature import check_signature  # here: cryptography is an extra

            check_signature(path, content, trusted_keys)
        manifest = parse_manifest(content, path / MANIFEST_FILE)
        check_identity(path, manifest, name, version)
        check_files(path, manifest)
        check_no_others(path, manifest)
        golden = read_golden(path) if GOLDEN_FILE in manifest.files else None
    except ManifestError as error:
        raise UnservableModel(str(error)) from error
    return manifest, golden


def check_tensors(session: Session, manifest: Manifest) -> None:
    """That the manifest describes the tensors the file has. Raises UnservableModel."""
    for side, found, listed in (
        ("inputs", session.inputs, manifest.inputs),
        ("outputs", session.outputs, manifest.outputs),
    ):
        if found != listed:
            raise UnservableModel(f"{MANIFEST_FILE}: {side} {list(listed)} are not those of the file: {list(found)}")
    if not session.batch_axis_by_name and (manifest.classification or isinstance(manifest.input, ImageInput)):
        raise UnservableModel(
            f"{MANIFEST_FILE}: images and labels need a batch; the first dimension of every tensor must be variable"
        )
    match manifest.input:
        case ImageInput(height=height, width=width, channels=channels):
            expected = (-1, height, width, channels)
            if len(session.inputs) != 1 or session.inputs[0].shape != expected or session.inputs[0].datatype != "UINT8":
                raise UnservableModel(f"{MANIFEST_FILE}: input: an image model takes one UINT8 {list(expected)} tensor")
    if (labelled := manifest.classification) is not None:
        scores = next((spec for spec in session.outputs if spec.name == labelled.output), None)
        wanted = (-1, len(labelled.labels))
        if scores is None or scores.shape != wanted or scores.datatype in ("BF16", "BYTES"):
            raise UnservableModel(
                f"{MANIFEST_FILE}: classification: output {labelled.output!r} with {len(labelled.labels)} labels "
                f"does not fit the file's outputs {list(session.outputs)}"
            )
