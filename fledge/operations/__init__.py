"""What a person asks for, as library calls that print nothing."""
