"""The SHA-256 of artifacts and streams that must never change by accident.

All golden hashes of the tests are here, as `tests/system/test_structure.py` checks. A changed hash
means that artifacts change, which needs an entry in CHANGELOG.md.
"""

# tests/operations/test_build.py: the initramfs of `support.project.make`.
INITRAMFS = "9acb08dc83724146d8bfef8e0dcdac474c8ab93f9d71df763c567a192703ead5"

# tests/operations/test_build.py: the ext4 image of `support.project.make_rootfs`.
ROOTFS = "d9701c3517a5ee3ba85260b5cb59f914565cfdabb692c1a1cffb0a802edb6106"

# tests/ext4/test_writer.py: the ext4 image of `support.samples.sample`.
EXT4_SAMPLE = "0b4763e40498fa2ecc7ad143a4f46c9d8299a530bcb5fbe64ea83bef61534106"

# tests/cpio/test_gzip.py: a gzip stream of text, noise and zeros, which depends on libdeflate.
GZIP = "5bf08efe8d5592411379a78d2cfe09ab7d25866e629a25570de6bbde92208d45"

# tests/oci/test_layout.py: the manifest for linux/amd64 of the image in fixtures/image.
FIXTURE_MANIFEST = "82b288f0f92a1ab559dbcd821e6d6b0f5d7c322e7baa0e1805f8a09b93e08909"

# tests/cpio/test_codecs.py: the same of zstd and LZ4, which depend on zstandard and lz4.
CODECS = {
    "zstd": "ba2119c6f62da6127ff7ab4298112da40a954abc413c05da4cf43ed789312ad9",
    "lz4": "b311d07b4810371641054f89fdd85947abb2fc4116f0cba3d7c02bfd597d9198",
}

# tests/ext4/test_read_only.py: the read-only ext4 image of `support.samples.sample`.
EXT4_READ_ONLY = "cfd3c5f00262ab1a4285ac11f0dd12de2d690ea601f945b92809404b1ed4d9a7"

# tests/tree/test_verity.py: a disk of noise that is sealed by dm-verity, and its root hash.
VERITY_ROOT_HASH = "0667f2c3ab30710971d888d5c0e9077f15b852ee129a1627267ad9eace819397"
VERITY_DISK = "2bbebf97d8e9d6c8be0d011610dba724f007502aaaebe53189650ce508fb345d"

# tests/operations/test_seal.py: the image of `support.project.make_rootfs`, read-only and sealed.
SEALED_ROOTFS = "5f51d71f031c220cd3e0add05cf340f442c3e703401bb39063ddeed9bf0d1778"
SEALED_ROOT_HASH = "8592e97a8d21a64960ea8623aa318f5d6d831c258e3bc3fc811abb51f7825635"

# tests/disks/squashfs/test_writer.py: the squashfs image of a rich tree, by its options.
SQUASHFS = {
    "usual": "d596b258d9f9c11449af09a5d9fd89ce37e7a072a448bee4e25eb149e458e4aa",
    "small": "859b1b6d1b06c83caeb6ec31b6a0e75f5e1fd5f4e14bb938faceeb4fc8b10590",
    "gzip": "094685e3eb50c206beacc9717737f37d761a876036f7d8cc6f123afc783d7cef",
    "gzip-large": "252d56f537747a0c4d7e5bc4f8e2ecda0010ac3275fc7734a9dfd23b9e8bb624",
}

# tests/operations/test_build.py: the squashfs image of `support.project.make_rootfs`.
SQUASHFS_ROOTFS = "413a867f0723a9f9c422e36060adeb3fc4c82c0ec4c36cb782465c13ad15b66b"
# tests/operations/test_build.py: the same as erofs with zstd.
EROFS_ROOTFS = "30538936c77811a85e3a87ea0b6a6ef8c3d0c679d0368011cc602037e2aada36"

# tests/disks/erofs/test_writer.py: the erofs image of a rich tree, by its compression.
EROFS = {
    "none": "ceb5b6c53fe98a855d401509305d0c6e7add65cc5f49430ec9e5c05dd95ea763",
    "lz4": "1c45ce744322b810b1867dd2cbc00d02c3bdeb4fdc27e405cbd5b571cb7c2d91",
    "zstd": "f0fe869f3191266e5712d69d001183a8453cb35a8d445e20bc9db28442c1a28d",
}

# tests/cli/pages/test_page.py: the data of the page about the disk of `support.layered`.
PAGE = "af417c56108df46ad94745d1cef2363da554e9e8dfafad13d091d1000ddcf804"

# tests/project/sboms/test_documents.py: software bills of materials of an odd inventory.
SBOMS = {
    "spdx": "d1f156cc24b479f7cb887814b39b7376c01218f39f34fb85ce5795255852706a",
    "cyclonedx": "ea7b9425535cc860747ed99f61e424f8cd3434ebe361b30f043883602275ef9c",
}
