"""The operations of fledge, as library functions that print nothing."""
