"""The SHA-256 of artifacts and streams that must never change by accident.

All golden hashes of the tests are here, as `tests/system/test_structure.py` checks. A changed hash
means that artifacts change, which needs an entry in CHANGELOG.md.
"""

# tests/operations/test_build.py: the initramfs of `support.project.make`.
INITRAMFS = "9acb08dc83724146d8bfef8e0dcdac474c8ab93f9d71df763c567a192703ead5"

# tests/operations/test_build.py: the ext4 image of `support.project.make_rootfs`.
ROOTFS = "c2e831069da5bc91092433d458db667b1b2b430a3d6336442caa6c2da2ac5ef5"

# tests/ext4/test_writer.py: the ext4 image of `support.samples.sample`.
EXT4_SAMPLE = "e2cd7d2be4c3f744e7397d08caf0e35ef4d63e782e1fe5b56fc807343695300a"

# tests/cpio/test_gzip.py: a gzip stream of text, noise and zeros, which depends on libdeflate.
GZIP = "5bf08efe8d5592411379a78d2cfe09ab7d25866e629a25570de6bbde92208d45"

# tests/oci/test_layout.py: the manifest for linux/amd64 of the image in fixtures/image.
FIXTURE_MANIFEST = "82b288f0f92a1ab559dbcd821e6d6b0f5d7c322e7baa0e1805f8a09b93e08909"

# tests/cpio/test_codecs.py: the same of zstd and LZ4, which depend on zstandard and lz4.
CODECS = {
    "zstd": "ba2119c6f62da6127ff7ab4298112da40a954abc413c05da4cf43ed789312ad9",
    "lz4": "b311d07b4810371641054f89fdd85947abb2fc4116f0cba3d7c02bfd597d9198",
}
