"""How large a filesystem is made."""

MIB = 1 << 20


def free_space(size_buffer_mb: int, content_size: int) -> int:
    """Bytes to leave free: the MiB that the config asks for.

    With 0 it is a quarter of the content, from 64 MiB to 1 GiB.
    """
    if size_buffer_mb:
        return size_buffer_mb * MIB
    return min(max(content_size // 4, 64 * MIB), 1024 * MIB)
