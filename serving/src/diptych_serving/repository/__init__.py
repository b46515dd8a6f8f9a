"""The files of a served repository: versions, pins, manifest, checksums, signatures, settings."""
